from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from salver.errors import MissingExtra
from salver.runtimes.files import IMPORTING, require

if TYPE_CHECKING:
    from pathlib import Path


def others_may_import() -> bool:
    """Whether another thread gets the lock now."""

    def is_free() -> bool:
        if not IMPORTING.acquire(blocking=False):
            return False
        IMPORTING.release()
        return True

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(is_free).result()


def test_no_two_threads_import_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from tests.runtimes.test_files import others_may_import\nfound = others_may_import()\n"
    )
    (tmp_path / "some_framework.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert require("some_framework", "none").found is False
    assert others_may_import()


def test_a_framework_that_is_missing_is_told_with_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"no_such_framework is missing.*salver\[sklearn\]"):
        require("no_such_framework.part", "sklearn")
