"""The contract of sources: what a listing holds, and when a stamp changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from salver.config import ModelConfig
from salver.errors import SalverError
from salver.interfaces import VersionOnDisk
from salver.testing.clauses import expect, only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from salver.interfaces import Source
    from salver.types import ModelRef

    Listing = Mapping[ModelRef, VersionOnDisk]


def append_byte(version: VersionOnDisk) -> None:
    """Makes the version's file, or the first file in its folder, one byte longer."""
    path = version.path
    file = path if path.is_file() else min(item for item in path.rglob("*") if item.is_file())
    with file.open("ab") as stream:
        stream.write(b"\n")


def check_source(
    source: Source,
    *,
    lose: Callable[[], object],
    change: Callable[[VersionOnDisk], object] = append_byte,
) -> None:
    """Checks `source`, which offers at least one version that can be loaded.

    `change` changes the files of a version where the source looks for them. `lose` makes something
    that the source lists unreachable, such as a folder or a server; it comes last. Neither is
    undone.
    Raises: AssertionError.
    """
    first = _scan(source)
    expect(bool(first), "check_source needs a source with versions", "it offers none")
    for ref, version in first.items():
        _check_version(ref, version)
        _check_older(source, ref.name, first)
    second = _scan(source)
    clause = "Source.scan gives the same while no file changes"
    expect(dict(first) == dict(second), clause, _differences(first, second))
    _check_stamps(source, change)
    lose()
    clause = "Source.scan gives a complete listing or raises a SalverError"
    try:
        with only(clause, SalverError):
            found = source.scan()
    except SalverError:
        return
    raise AssertionError(f"{clause}; with a part lost, it listed {len(found)} of {len(first)}")


def _scan(source: Source) -> Listing:
    with only("Source.scan lists what is there"):
        return source.scan()


def _check_version(ref: ModelRef, version: VersionOnDisk) -> None:
    expect(isinstance(version, VersionOnDisk), "Source.scan gives VersionOnDisk", repr(version))
    clause = "Source.scan lists a version under its own reference"
    expect(version.ref == ref, clause, f"{version.ref!r} is listed as {ref!r}")
    expect(bool(ref.name and ref.version), "A version on disk has a name and a version", repr(ref))
    is_stamp = isinstance(version.stamp, str) and bool(version.stamp)
    expect(is_stamp, "VersionOnDisk.stamp is text", f"{ref}: {version.stamp!r}")
    is_config = isinstance(version.config, ModelConfig)
    expect(is_config, "VersionOnDisk.config is a ModelConfig", f"{ref}: {version.config!r}")
    is_problem = version.problem is None or isinstance(version.problem, SalverError)
    clause = "VersionOnDisk.problem is a SalverError or None"
    expect(is_problem, clause, f"{ref}: {version.problem!r}")
    clause = "VersionOnDisk.path is where the files of a version without a problem are"
    is_there = isinstance(version.path, Path) and version.path.exists()
    expect(version.problem is not None or is_there, clause, f"{ref}: {version.path!r}")


def _check_older(source: Source, name: str, listing: Listing) -> None:
    with only("Source.older lists what is there"):
        older = source.older(name)
    for version in older:
        _check_version(version.ref, version)
        clause = "Source.older gives versions of that name which are not listed"
        expect(version.ref.name == name and version.ref not in listing, clause, str(version.ref))


def _check_stamps(source: Source, change: Callable[[VersionOnDisk], object]) -> None:
    for ref in [ref for ref, version in _scan(source).items() if version.problem is None]:
        before = _scan(source)
        kept = dict(before)
        change(before[ref])
        after = _scan(source)
        expect(dict(before) == kept, "A listing stays as it was given", "a later scan changed it")
        clause = "A version stays listed while its files change"
        expect(ref in after, clause, f"{ref} is gone")
        clause = "VersionOnDisk.stamp changes when the files do"
        expect(after[ref].stamp != before[ref].stamp, clause, f"{ref} keeps {before[ref].stamp!r}")


def _differences(first: Listing, second: Listing) -> str:
    names = [str(ref) for ref in {*first, *second} if first.get(ref) != second.get(ref)]
    return f"two scans differ in {', '.join(sorted(names))}"
