"""Loads a model file as the engine does, and runs one of its methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from salver.config import ModelConfig
from salver.interfaces import LoadSpec
from salver.types import ModelRef, Tensor, Tensors, Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def load() -> Callable[..., Any]:
    def load(
        runtime: Any,
        path: Path,
        *,
        trusted: bool = False,
        warn: Callable[[str], None] = pytest.fail,
        **config: Any,
    ) -> Any:
        spec = LoadSpec(
            path=path, ref=ModelRef("m"), config=ModelConfig(**config), trusted=trusted, warn=warn
        )
        return runtime.load(spec)

    return load


@pytest.fixture
def run() -> Callable[..., dict[str, Any]]:
    def run(
        model: Any, inputs: dict[str, Any], method: str = "", outputs: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Checks inputs and outputs against the signature; gives arrays by output name."""
        name, declared = model.signature.method(method)
        tensors = Tensors({key: Tensor.of(value) for key, value in inputs.items()})
        rows = declared.check(tensors)
        outputs = outputs or declared.default_outputs()
        arrays = {key: np.asarray(tensor.array()) for key, tensor in tensors.items()}
        work = Work(name, arrays, [0, rows], outputs, [{}])
        found = model.run(work, lambda index, item: None).tensors
        assert set(found) == set(outputs)
        for spec in declared.outputs:
            if spec.name in found:
                spec.check(found[spec.name])
        return {key: tensor.array() for key, tensor in found.items()}

    return run
