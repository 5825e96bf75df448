"""Batches as large as the promised latency allows, by costs learned while serving.

The method is that of adaptive batching under a latency objective (Crankshaw et al., "Clipper",
NSDI 2017), with one learned cost per power of two of the size instead of one size for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.clock import NS_PER_MS
from salver.schedulers.cost import CostModel
from salver.schedulers.dynamic import UNLIMITED, DynamicScheduler, Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from salver.config import ModelConfig
    from salver.schedulers.queue import Lane
    from salver.types import Batch


class SloScheduler(DynamicScheduler):
    """Keeps the oldest call within `batching.slo_ms`.

    What cannot be kept any more is run at the size with the best throughput, to catch up.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        costs: Callable[[], CostModel] = CostModel,
    ) -> None:
        super().__init__(config, max_rows)
        self._slo = int(config.batching.slo_ms * NS_PER_MS)
        self._new_costs = costs
        self._costs: dict[str, CostModel] = {}

    def _release(self, lane: Lane, now: int) -> Release | None:
        release = super()._release(lane, now)
        if release is None:
            return None
        first = lane.first()
        costs = self._costs.get(first.method)
        if costs is None:
            return release
        largest = costs.largest_within(first.queued + self._slo - now)
        if largest is not None and largest < first.size:
            largest = costs.cheapest()
        return Release(release.rows, UNLIMITED if largest is None else largest, "slo")

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        if not cost_ns:
            return
        method = batch.calls[0].method
        costs = self._costs.get(method)
        if costs is None:
            costs = self._costs[method] = self._new_costs()
        costs.learn(sum(call.size for call in batch.calls), cost_ns)
