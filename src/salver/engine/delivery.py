"""Hands answers to the sinks of calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salver.errors import SalverError
    from salver.types import Call, ModelRef, Response

log = logging.getLogger("salver.engine")


def deliver(ref: ModelRef, call: Call, item: Response | SalverError, final: bool) -> None:
    """Pushes an item. One sink's bug must not cost other calls their answers."""
    try:
        call.sink.push(call, item, final)
    except Exception:
        log.exception("%s: an answer was lost", ref)
