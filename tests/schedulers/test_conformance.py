"""Every scheduler keeps the contract of schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from salver.schedulers.direct import DirectScheduler
from salver.schedulers.dynamic import DynamicScheduler
from salver.schedulers.slo import SloScheduler
from salver.testing import check_scheduler

if TYPE_CHECKING:
    from salver.config import ModelConfig


def direct(config: ModelConfig, max_rows: int) -> DirectScheduler:
    return DirectScheduler(config)


@pytest.mark.parametrize("make", [direct, DynamicScheduler, SloScheduler])
def test_a_scheduler_keeps_its_contract(make: Any) -> None:
    check_scheduler(make)
