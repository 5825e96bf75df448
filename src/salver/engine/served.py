"""A served name: its ready generations, and what became of its other versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from salver.errors import NotFound, SalverError, Unavailable, listed
from salver.observe.statistics import ModelStatistics, merged
from salver.types import ModelRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.engine.generation import Generation


class State(NamedTuple):
    """What became of a version: `READY`, `LOADING` or `UNAVAILABLE`, and why."""

    name: str
    reason: str = ""


UNLOADED: Final = State("UNAVAILABLE", "unloaded")


class ServedModel:
    """A name: its ready generations, and what became of the other versions.

    Counters belong to versions, not to generations, so that they go on counting when a version is
    loaded anew; those of versions that are gone are summed up, when calls in other processes have
    ended too.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[str, Generation] = {}
        self.latest: Generation | None = None
        self.labels: Mapping[str, str] = {}
        self.states: dict[str, State] = {}
        self.counters: dict[str, ModelStatistics] = {}
        self.ending: list[ModelStatistics] = []
        self._past = ModelStatistics()

    @property
    def statistics(self) -> ModelStatistics:
        """What all versions counted, past ones too, so that a swap takes nothing away."""
        live = (*self.counters.values(), *self.ending)
        return merged([*(counters.total() for counters in live), self._past])

    def put(self, generation: Generation) -> Generation | None:
        """Makes a generation visible; returns the one it takes the place of."""
        version = generation.ref.version
        old = self.versions.get(version)
        self.versions[version] = generation
        counters = self.counters.get(version, generation.statistics)
        if counters is not generation.statistics:
            self.ending.append(counters)
        self.counters[version] = generation.statistics
        self.states[version] = State("READY")
        self.labels = generation.config.version_labels
        self._choose_latest()
        return old

    def take(self, version: str) -> Generation | None:
        """Takes a version out of sight."""
        found = self.versions.pop(version, None)
        self._choose_latest()
        return found

    def _choose_latest(self) -> None:
        self.latest = max(
            self.versions.values(), key=lambda g: version_key(g.ref.version), default=None
        )

    def remember(self, counters: ModelStatistics) -> None:
        """Takes over what a generation counts that was never in this process."""
        self.ending.append(counters)

    def settle(self, version: str) -> None:
        """A version that nobody uses here any more counts among the past ones."""
        if version not in self.versions and self.states.get(version, UNLOADED).name != "LOADING":
            self.ending.append(self.counters.pop(version, ModelStatistics()))

    def sum_up(self, ended: Sequence[ModelStatistics]) -> None:
        """Nobody counts in these any more."""
        for counters in ended:
            if counters in self.ending:
                self.ending.remove(counters)
                self._past.add(counters.total())

    @property
    def answers(self) -> bool:
        """It takes calls, or was unloaded on purpose."""
        return any(g.target.is_ready for g in self.versions.values()) or all(
            state == UNLOADED for state in self.states.values()
        )

    def find(self, version: str) -> Generation:
        """The generation for a version or label; the latest for an empty one.

        Raises: NotFound, Unavailable.
        """
        if not version:
            found = self.latest
        else:
            found = self.versions.get(version)
            if found is None and version in self.labels:
                version = self.labels[version]
                found = self.versions.get(version)
        if found is None:
            raise self._missing(version)
        return found

    def _missing(self, version: str) -> SalverError:
        if version and version not in self.states:
            served = listed(sorted(self.versions, key=version_key))
            labels = f"; labels: {', '.join(sorted(self.labels))}" if self.labels else ""
            return NotFound(f"{self.name!r} has no version {version!r}; served: {served}{labels}")
        state = self.states.get(version) or next(iter(self.states.values()), UNLOADED)
        reason = f": {state.reason}" if state.reason else ""
        return Unavailable(
            f"{ModelRef(self.name, version)} is not ready ({state.name.lower()}){reason}"
        )


def version_key(version: str) -> tuple[int, int, str]:
    """Orders versions: numbers by value, after all other words."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


def why_unavailable(ref: ModelRef, failed: ModelRef, error: BaseException) -> str:
    """Why a version was not loaded: because it `failed`, or one that was to come with it."""
    if ref != failed:
        return f"not loaded, as {failed} could not be"
    why = error.message if isinstance(error, SalverError) else "it was interrupted"
    return f"loading failed: {why}"
