from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from salver.config import ModelConfig, Warmup
from salver.engine.warmup import Cost, made_up, warm_up
from salver.errors import InvalidInput, LoadFailed
from salver.signature import Method, Signature, TensorSpec
from salver.types import BYTES, FP32, ModelRef, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from salver.types import Work

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
REF = ModelRef("m", "1")
IMAGE = TensorSpec(name="x", dtype=BYTES, shape=(1,), content="image")
ROWS = Method(inputs=(X,), outputs=(X,), batching="rows")
GOOD = Rows(Tensors(x=Tensor.of([[1.0, 2.0]])))


class Runs:
    """Plays one result after the other."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.works: list[Work] = []

    async def __call__(self, work: Work) -> tuple[Any, int]:
        self.works.append(work)
        return self.results.pop(0)


def test_the_best_time_counts() -> None:
    runs = Runs((GOOD, 900), (GOOD, 300), (GOOD, 400))
    costs = asyncio.run(warm_up(runs, Signature({"m": ROWS}), ModelConfig(), REF))
    assert costs == [Cost("m", 1, 300)]
    assert runs.works[0].inputs["x"].tolist() == [[0, 0]]


def test_the_example_is_run_as_it_is() -> None:
    config = ModelConfig(example=[3, 4], warmup=Warmup(runs=1))
    runs = Runs((GOOD, 5))
    asyncio.run(warm_up(runs, Signature({"m": ROWS}), config, REF))
    assert runs.works[0].inputs["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    "results",
    [ValueError("no"), [InvalidInput("no")], [Tensors()], [], Rows(Tensors())],
)
def test_an_example_that_fails_fails_the_load(results: Any) -> None:
    config = ModelConfig(example=[3, 4])
    with pytest.raises(LoadFailed, match="its own example"):
        asyncio.run(warm_up(Runs((results, 1)), Signature({"m": ROWS}), config, REF))


def test_an_example_that_does_not_fit_is_explained() -> None:
    with pytest.raises(LoadFailed, match="the example does not fit"):
        asyncio.run(warm_up(Runs(), Signature({"m": ROWS}), ModelConfig(example=[1, 2, 3]), REF))


def test_made_up_inputs_prove_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "salver.engine")
    runs = Runs((GOOD, 5), (ValueError("zeros"), 1))
    assert asyncio.run(warm_up(runs, Signature({"m": ROWS}), ModelConfig(), REF)) == []
    assert all(work.is_trial for work in runs.works)
    (record,) = caplog.records
    assert "does not take the made-up input" in record.getMessage()
    assert "ValueError: zeros" in record.getMessage()


def test_what_cannot_be_made_up_or_streams_is_left_out() -> None:
    image = Method(inputs=(IMAGE,), outputs=(X,))
    stream = Method(inputs=(X,), outputs=(X,), streams=True)
    signature = Signature({"image": image, "stream": stream})
    assert asyncio.run(warm_up(Runs(), signature, ModelConfig(), REF)) == []


def test_made_up_inputs_have_the_smallest_shape() -> None:
    text = TensorSpec(name="t", dtype=BYTES, shape=(-1,))
    inputs = made_up(Method(inputs=(X, text), outputs=(X,)))
    assert inputs is not None
    assert inputs["x"].shape == (1, 2)
    assert inputs["t"].array().tolist() == [b"a"]
    assert inputs["x"].array().dtype == np.float32
