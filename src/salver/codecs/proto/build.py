"""Compiles every .proto of this folder into `descriptors.binpb`.

Run `python -m salver.codecs.proto.build` after a change; it needs `pip install grpcio-tools`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from salver.errors import ConfigError

FOLDER: Final = Path(__file__).parent
DESCRIPTORS: Final = FOLDER / "descriptors.binpb"


def compile_descriptors() -> bytes:
    """A serialized FileDescriptorSet of all files, each after those that it imports.

    Raises: ConfigError if a file does not compile; the compiler says on stderr why.
    """
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, DESCRIPTORS.name)
        arguments = ["protoc", f"-I{FOLDER}", "--include_imports", f"--descriptor_set_out={target}"]
        if protoc.main(arguments + sources) != 0:
            raise ConfigError("the .proto files do not compile")
        return target.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compile_descriptors())
