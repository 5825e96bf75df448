"""Salver serves any model to any client: one process, one port, one command."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from salver.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from salver.authoring import Array, context, model, use
    from salver.client.aio import AsyncClient
    from salver.client.sync import Client
    from salver.errors import InvalidInput
    from salver.observe.monitor import monitor_inference

_PLACES = {
    "Array": "salver.authoring",
    "AsyncClient": "salver.client.aio",
    "Client": "salver.client.sync",
    "Image": "salver.authoring",
    "InvalidInput": "salver.errors",
    "context": "salver.authoring",
    "model": "salver.authoring",
    "monitor_inference": "salver.observe.monitor",
    "use": "salver.authoring",
}

__all__ = [
    "Array",
    "AsyncClient",
    "Client",
    "Image",
    "InvalidInput",
    "__version__",
    "context",
    "model",
    "monitor_inference",
    "use",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import salver` stays light."""
    if name not in _PLACES:
        raise AttributeError(f"module 'salver' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value
