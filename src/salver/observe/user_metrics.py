"""What the code of models counts with prometheus_client, and adding it up over instances.

A module that is loaded twice registers its metrics twice, which prometheus_client refuses. So each
load in a process that may see several gets a registry of its own.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry, Metric
    from prometheus_client.registry import Collector

log = logging.getLogger("salver.metrics")
_registries: Final[dict[str, CollectorRegistry]] = {}


@contextmanager
def own_registry(owner: str) -> Iterator[None]:
    """What is registered by default in this context belongs to `owner` until `forget`.

    One at a time: the default registry is the whole process's. A process that has not imported
    prometheus_client yet is a worker, which loads one model only.
    """
    if "prometheus_client" not in sys.modules:
        yield
        return
    from prometheus_client import REGISTRY, CollectorRegistry

    registry = CollectorRegistry()
    REGISTRY.register = registry.register  # type: ignore[method-assign]
    try:
        yield
    finally:
        del REGISTRY.register
    keep(owner, registry)


def keep(owner: str, registry: CollectorRegistry) -> None:
    """Makes a registry part of what this process tells."""
    _registries[owner] = registry


def forget(owner: str) -> None:
    """Ends what `own_registry` or `keep` began."""
    _registries.pop(owner, None)


def exposition() -> bytes:
    """Everything that the code of models counts in this process, as texts one after the other."""
    if "prometheus_client" not in sys.modules:
        return b""
    from prometheus_client import REGISTRY, generate_latest

    texts = []
    registries: list[Collector] = [_WithoutProcess(REGISTRY), *_registries.values()]
    for registry in registries:
        try:
            texts.append(generate_latest(registry))
        except Exception:
            log.exception("metrics of a model cannot be collected")
    return b"".join(texts)


class _WithoutProcess:
    """A registry without what prometheus_client says of the process, which the server tells."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR

        collectors = (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR)
        standard = {metric.name for each in collectors for metric in each.collect()}
        return (metric for metric in self._registry.collect() if metric.name not in standard)


class Family(NamedTuple):
    """One metric. `samples` has values by name and labels, both as they are written."""

    kind: str
    comments: list[str]
    samples: dict[str, str]


def added_up(texts: Iterable[bytes]) -> dict[str, Family]:
    """Families by name over several processes and models.

    Counts are summed; of a gauge the largest value stands. A family keeps the type that it is first
    seen with. The times at which counters were created mean nothing for a sum and are left out.
    """
    families: dict[str, Family] = {}
    for text in texts:
        for name, family in _families(text.decode(errors="replace")):
            known = families.setdefault(name, Family(family.kind, family.comments, {}))
            if known.kind != family.kind:
                continue
            for key, value in family.samples.items():
                before = known.samples.get(key)
                known.samples[key] = value if before is None else _join(known.kind, before, value)
    return {name: family for name, family in families.items() if not _is_birth(name, families)}


def _is_birth(name: str, families: dict[str, Family]) -> bool:
    base = name.removesuffix("_created")
    return base != name and (base in families or f"{base}_total" in families)


def _join(kind: str, one: str, other: str) -> str:
    try:
        values = float(one), float(other)
    except ValueError:
        return other
    return repr(max(values) if kind == "gauge" else sum(values))


def _families(text: str) -> Iterator[tuple[str, Family]]:
    """Families in the order of the text format, version 0.0.4."""
    name, family = "", Family("untyped", [], {})
    for line in text.split("\n"):
        if line.startswith(("# HELP ", "# TYPE ")):
            _, what, found, rest = (line + " ").split(" ", 3)
            if found != name or what == "HELP":
                if name:
                    yield name, family
                name, family = found, Family("untyped", [], {})
            family.comments.append(line)
            if what == "TYPE":
                family = family._replace(kind=rest.strip())
        elif line and not line.startswith("#"):
            labelled, brace, value = line.rpartition("}")
            key, value = (labelled + brace, value) if brace else line.split(" ", 1)
            family.samples[key] = value.split()[0]
    if name:
        yield name, family
