"""Names of plug-ins, each `"module:attribute"`, imported only when used."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from salver.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")


class Registry(Generic[T]):
    """The plug-ins of one kind: our own, and those of installed packages (`salver.<kind>`)."""

    def __init__(self, kind: str, own: Mapping[str, str]) -> None:
        self.kind = kind
        self._own = own
        self._foreign: dict[str, str] | None = None
        self._loaded: dict[str, T] = {}

    def _table(self) -> dict[str, str]:
        if self._foreign is None:
            points = entry_points(group=f"salver.{self.kind}")
            self._foreign = {point.name: point.value for point in points}
        return {**self._foreign, **self._own}

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def get(self, name: str) -> T:
        """The plug-in of that name.

        Raises: ConfigError naming the nearest one that exists.
        """
        found = self._loaded.get(name)
        if found is None:
            table = self._table()
            if name not in table:
                raise ConfigError(
                    f"no {self.kind.removesuffix('s')} is called {name!r}."
                    f"{did_you_mean(name, table)} There are: {', '.join(sorted(table))}"
                )
            module, _, attribute = table[name].partition(":")
            found = cast("T", getattr(importlib.import_module(module), attribute))
            self._loaded[name] = found
        return found
