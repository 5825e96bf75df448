from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from salver import registry
from salver.errors import ConfigError
from salver.registry import Registry

OWN = {"path": "pathlib:Path", "gone": "no_such_module:X"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """Beside our own, those of a package that also claims a name of ours."""

    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "salver.things"
        theirs = {"path": "os:PathLike", "decimal": "decimal:Decimal"}
        return [EntryPoint(name, value, group) for name, value in theirs.items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return Registry("things", OWN)


def test_packages_add_names_but_take_none_of_ours(names: Registry[Any]) -> None:
    from decimal import Decimal
    from pathlib import Path

    assert sorted(names) == ["decimal", "gone", "path"]
    assert names.get("path") is Path
    assert names.get("decimal") is Decimal


def test_a_plug_in_is_imported_only_when_it_is_used(names: Registry[Any]) -> None:
    assert "gone" in names
    with pytest.raises(ModuleNotFoundError):
        names.get("gone")


def test_an_unknown_name_is_told_with_the_nearest(names: Registry[Any]) -> None:
    message = "no thing is called 'pth'. Did you mean 'path'? There are: decimal, gone, path"
    with pytest.raises(ConfigError) as raised:
        names.get("pth")
    assert raised.value.message == message
