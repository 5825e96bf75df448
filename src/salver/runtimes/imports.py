"""Imports of the author's own files, which lie beside a model."""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_PREFIX: Final = "salver_model_"
"""Begins the names under which models themselves are kept in `sys.modules`."""

# Import paths and modules belong to the process: one load at a time may change them.
_importing: Final = threading.RLock()


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Makes the files in `folder` importable, and each load import its own copy of them."""
    folder = folder.resolve()
    with _importing:
        before, writes = set(sys.modules), sys.dont_write_bytecode
        # A cache beside the model would look like a change of its files.
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.dont_write_bytecode = writes
            sys.path.remove(str(folder))
            for name in set(sys.modules) - before:
                is_beside = is_authors(getattr(sys.modules[name], "__file__", None), folder)
                if is_beside and not name.startswith(OWN_PREFIX):
                    del sys.modules[name]


def is_authors(filename: str | None, folder: Path) -> bool:
    """Whether code is the author's own and not of a package installed below the same folder."""
    if not filename or not Path(filename).is_relative_to(folder):
        return False
    return "site-packages" not in Path(filename).relative_to(folder).parts
