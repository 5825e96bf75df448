"""Each way to break the contract of sources is caught."""

from __future__ import annotations

import shutil
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from salver.config import ModelConfig
from salver.errors import LoadFailed
from salver.interfaces import VersionOnDisk
from salver.testing import check_source
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Folders:
    """A version `1` for every folder in one of two places."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        found = {}
        for place in ("a", "b"):
            if not (self.root / place).exists():
                return self.missing(place, found)
            for path in (self.root / place).iterdir():
                version = self.version(path)
                found[version.ref] = version
        return self.listing(found)

    def older(self, name: str) -> Any:
        return []

    def missing(self, place: str, found: Any) -> Any:
        raise LoadFailed(f"there is no {place}")

    def version(self, path: Path) -> VersionOnDisk:
        size = sum(file.stat().st_size for file in path.iterdir())
        return VersionOnDisk(ModelRef(path.name, "1"), path, f"{size}", ModelConfig())

    def listing(self, found: Any) -> Any:
        return found


NUMBERS = count()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/one", "a/two", "b/three"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model").write_bytes(b"1")
    return tmp_path


def check(source: Any, root: Path) -> None:
    check_source(source, lose=lambda: shutil.rmtree(root / "b"))


def test_a_good_source_passes(root: Path) -> None:
    check(Folders(root), root)


class Partial(Folders):
    def missing(self, place: str, found: Any) -> Any:
        return found


class RaisesAnything(Folders):
    def missing(self, place: str, found: Any) -> Any:
        raise FileNotFoundError(place)


class OffersNothing(Folders):
    def listing(self, found: Any) -> Any:
        return {}


class Fails(Folders):
    def listing(self, found: Any) -> Any:
        raise KeyError("bucket")


class Misnames(Folders):
    def listing(self, found: Any) -> Any:
        return {ModelRef(ref.name, "2"): version for ref, version in found.items()}


class GivesPaths(Folders):
    def listing(self, found: Any) -> Any:
        return {ref: version.path for ref, version in found.items()}


class ChangesItsListing(Folders):
    kept: Any = {}  # noqa: RUF012

    def listing(self, found: Any) -> Any:
        self.kept.update(found)
        return self.kept


class ListsTwice(Folders):
    def older(self, name: str) -> Any:
        return [version for ref, version in self.scan().items() if ref.name == name]


class ForgetsWhatChanges(Folders):
    def listing(self, found: Any) -> Any:
        return {ref: version for ref, version in found.items() if version.stamp == "1"}


class Changes(Folders):
    """Changes fields of right versions."""

    def __init__(self, root: Path, **changes: Any) -> None:
        super().__init__(root)
        self.changes = changes

    def version(self, path: Path) -> VersionOnDisk:
        changes = {name: make(path) for name, make in self.changes.items()}
        return super().version(path)._replace(**changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Partial, {}, "complete listing or raises a SalverError; .* it listed 2 of 3"),
        (RaisesAnything, {}, "raises a SalverError; it raised FileNotFoundError"),
        (OffersNothing, {}, "needs a source with versions"),
        (Fails, {}, "scan lists what is there; it raised KeyError"),
        (Misnames, {}, "under its own reference"),
        (GivesPaths, {}, "scan gives VersionOnDisk"),
        (ListsTwice, {}, "older gives versions of that name which are not listed"),
        (ChangesItsListing, {}, "A listing stays as it was given"),
        (ForgetsWhatChanges, {}, "stays listed while its files change"),
        (Changes, {"ref": lambda path: ModelRef(path.name)}, "has a name and a version"),
        (Changes, {"stamp": lambda path: 1}, "stamp is text"),
        (Changes, {"stamp": lambda path: "same"}, "stamp changes when the files do; .* 'same'"),
        (Changes, {"stamp": lambda path: str(next(NUMBERS))}, "gives the same while"),
        (Changes, {"config": lambda path: {}}, "config is a ModelConfig"),
        (Changes, {"problem": lambda path: "bad"}, "problem is a SalverError or None"),
        (Changes, {"path": lambda path: path / "lost"}, "path is where the files"),
    ],
)
def test_a_broken_source_is_caught(root: Path, kind: Any, changes: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(kind(root, **changes), root)
