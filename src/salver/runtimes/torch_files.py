"""Tells what a PyTorch file holds by looking into its archive; nothing is unpickled."""

from __future__ import annotations

import json
import pickletools
import zipfile
import zlib
from typing import TYPE_CHECKING, Final, Literal

from salver.errors import LoadFailed

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["script", "exported", "compiled", "module", "weights", "safetensors"]

_WEIGHT_MODULES: Final = {"collections", "torch", "torch._utils", "torch._tensor", "torch.storage"}
_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_PICKLE_BYTES: Final = 16 << 20
_MAX_HEADER_BYTES: Final = 100 << 20


def kind_of(file: Path) -> Kind | None:
    """What `file` holds; None if PyTorch did not write it.

    A pickle counts as a module if it names anything that tensors do not need.
    """
    if file.suffix.lower() == ".safetensors":
        return "safetensors"
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            return "weights" if opened.read(len(_LEGACY)) == _LEGACY else None
    try:
        with zipfile.ZipFile(file) as archive:
            return _kind_of_archive(archive)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError):
        return None


def _kind_of_archive(archive: zipfile.ZipFile) -> Kind | None:
    # Everything lies in one folder, except in exported programs of older versions.
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if any(name.startswith("data/aotinductor/") for name in names):
        return "compiled"
    if "serialized_exported_program.json" in archive.namelist():
        return "exported"
    if any(name.startswith("models/") for name in names):
        return "exported"
    if "constants.pkl" in names:
        return "script"
    if "data.pkl" not in names:
        return None
    entry = archive.getinfo(names["data.pkl"])
    is_small = entry.file_size <= _MAX_PICKLE_BYTES
    return "weights" if is_small and _has_weights_only(archive.read(entry)) else "module"


def _has_weights_only(pickled: bytes) -> bool:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STACK_GLOBAL":
                return False
            if opcode.name == "GLOBAL" and str(argument).split()[0] not in _WEIGHT_MODULES:
                return False
    except ValueError:
        return False
    return True


def why_trust(kind: Kind | None, file: Path, class_name: str) -> str:
    """Why opening the file runs code from whoever made it; empty if it does not."""
    if kind == "module":
        return f"{file.name} is a pickled module: opening it runs code from the file"
    if kind == "exported":
        return f"{file.name} is an exported program: PyTorch evaluates expressions from it"
    if class_name and kind in ("weights", "safetensors"):
        return f"the class {class_name} is Python code that runs to load {file.name}"
    return ""


def safetensors_names(file: Path) -> list[str]:
    """Names of the tensors, from the header of the file.

    Raises: LoadFailed.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(size)) if size <= _MAX_HEADER_BYTES else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise LoadFailed(f"{file.name} is not a safetensors file")
    return [name for name in header if name != "__metadata__"]
