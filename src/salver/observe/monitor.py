"""The decorator that counts and times calls of any function under the names of the tutorials."""

from __future__ import annotations

import inspect
import time
from contextlib import aclosing
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from salver.observe.user_metrics import keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter, Histogram

F = TypeVar("F", bound="Callable[..., Any]")


def monitor_inference(model_name: str) -> Callable[[F], F]:
    """Counts calls in `inference_requests_total{model,status}` and times them in
    `inference_duration_seconds{model}`, which appear on `/metrics`.

    For functions, coroutines and generators, whose time lasts until they end.
    """

    def decorate(function: F) -> F:
        # Each kind must stay what it is, for callers and type hints look at it.
        if inspect.isasyncgenfunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with _Observed(model_name):
                    async with aclosing(function(*args, **kwargs)) as items:
                        async for item in items:
                            yield item

        elif inspect.isgeneratorfunction(function):

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with _Observed(model_name):
                    return (yield from function(*args, **kwargs))

        elif inspect.iscoroutinefunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with _Observed(model_name):
                    return await function(*args, **kwargs)

        else:

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with _Observed(model_name):
                    return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


class _Observed:
    """Times one call. An exception makes it an error; a stream that nobody reads on is none."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        requests, duration = _metrics()
        status = "success" if kind is None or kind is GeneratorExit else "error"
        requests.labels(self._model, status).inc()
        duration.labels(self._model).observe(seconds)


@cache
def _metrics() -> tuple[Counter, Histogram]:
    """One pair per process, in a registry of its own: a model may have metrics of these names."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    registry = CollectorRegistry()
    keep("salver.monitor_inference", registry)
    return (
        Counter(
            "inference_requests_total",
            "Total inference requests",
            ["model", "status"],
            registry=registry,
        ),
        Histogram(
            "inference_duration_seconds", "Inference request duration", ["model"], registry=registry
        ),
    )
