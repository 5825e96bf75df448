"""A model as its `model.yaml` wants it: the signature that clients see, and the largest batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from salver.errors import LoadFailed, SalverError
from salver.signature import Signature

if TYPE_CHECKING:
    from salver.config import ModelConfig
    from salver.interfaces import Traits
    from salver.signature import Method, TensorSpec


def chosen(signature: Signature, config: ModelConfig, traits: Traits) -> Signature:
    """A model's signature as `model.yaml` wants it: its default method first, names for columns and
    classes where they fit and the file itself has none, and no request larger than a batch may be.

    Raises: LoadFailed if there is no such method.
    """
    try:
        default, _ = signature.method(config.default_method)
    except SalverError as error:
        raise LoadFailed(f"default_method: {error.message}") from None
    limit = max_batch(config, traits)
    methods = {
        name: msgspec.structs.replace(
            method,
            max_rows=_most_rows(method, limit),
            inputs=tuple(_with_columns(spec, config.columns) for spec in method.inputs),
            outputs=tuple(_with_labels(spec, config.labels) for spec in method.outputs),
        )
        for name, method in signature.methods.items()
    }
    return Signature({default: methods[default]} | methods)


def _most_rows(method: Method, limit: int) -> int:
    # A limit of 1 keeps calls apart; how many rows one of them may have, it does not say.
    if method.batching != "rows" or limit <= 1:
        return method.max_rows
    return min(method.max_rows or limit, limit)


def _with_columns(spec: TensorSpec, columns: tuple[str, ...]) -> TensorSpec:
    fits = len(spec.shape) == 2 and spec.shape[1] == len(columns)
    return msgspec.structs.replace(spec, columns=columns) if fits and not spec.columns else spec


def _with_labels(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    fits = spec.role == "label" or (bool(spec.shape) and spec.shape[-1] == len(labels))
    if not (labels and fits and not spec.labels):
        return spec
    return msgspec.structs.replace(spec, labels=labels)


def max_batch(config: ModelConfig, traits: Traits) -> int:
    """Most rows in a batch: what is configured, at most what the model takes; 0 for no limit."""
    limits = [size for size in (config.batching.max_size, traits.max_batch) if size]
    return min(limits, default=0)
