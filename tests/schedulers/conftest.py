from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from salver.types import NO_CONTEXT, Call, CallContext, Request, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def call() -> Callable[..., Call]:
    """Makes calls as the engine hands them to a scheduler."""

    def make(
        now: int = 0,
        rows: int = 1,
        group: Any = "predict",
        priority: int = 0,
        deadline: int = 0,
    ) -> Call:
        context = CallContext(deadline, priority) if deadline or priority else NO_CONTEXT
        made = Call(Request(Tensors()), cast("Any", None), context, cast("Any", None), now)
        made.rows = made.size = rows
        made.group = group
        made.method = "predict"
        return made

    return make
