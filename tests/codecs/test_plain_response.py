from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import orjson
import pytest

from salver.codecs import json_numbers, plain_response
from salver.codecs.json_numbers import PART_VALUES, LongText
from salver.codecs.plain_response import (
    answer_parts,
    answer_text,
    outputs_parts,
    outputs_text,
    predictions_parts,
    predictions_text,
)
from salver.signature import Batching, Method, TensorSpec
from salver.types import BYTES, FP32, INT64, ModelRef, Response, Rows, Tensor, Tensors

Y = TensorSpec(name="y", dtype=FP32, shape=(-1, 2))
IMAGE = TensorSpec(name="image", dtype=FP32, shape=(-1, 3, 4))
TEXT = TensorSpec(name="text", dtype=BYTES, shape=(-1,), content="text")
JSON = TensorSpec(name="json", dtype=BYTES, shape=(-1,), content="json")
LABEL = TensorSpec(name="label", dtype=INT64, shape=(-1,), role="label", labels=("no", "yes"))
SCORES = TensorSpec(name="scores", dtype=FP32, shape=(-1, 2), role="probabilities")
LOGITS = TensorSpec(name="logits", dtype=FP32, shape=(-1, 2), labels=("no", "yes"))


def values(spec: TensorSpec, num_rows: int) -> Tensor:
    shape = (num_rows, *spec.shape[1:])
    if spec.dtype is BYTES:
        items = [b'{"a": [%d]}' % index for index in range(num_rows)]
        return Tensor(BYTES, shape, np.array(items, np.object_).reshape(shape))
    if spec.dtype is INT64:
        return Tensor.of(np.arange(num_rows) % 2)
    if spec in (SCORES, LOGITS):
        first = np.linspace(0, 1, num_rows, dtype=np.float32)
        return Tensor.of(np.stack([first, 1 - first], axis=1))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 3
    array.flat[5] = np.nan
    return Tensor.of(array)


def response(batching: Batching, num_rows: int, *specs: TensorSpec) -> Response:
    tensors = Tensors({spec.name: values(spec, num_rows) for spec in specs})
    method = Method(inputs=(), outputs=specs, batching=batching)
    return Response(Rows(tensors), ModelRef("m", "3"), method, tuple(tensors))


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four values are a part."""
    monkeypatch.setattr(json_numbers, "PART_VALUES", 4)
    monkeypatch.setattr(plain_response, "PART_VALUES", 4)


CASES = [
    (batching, num_rows, specs)
    for batching in ("rows", "single")
    for num_rows in (9, 1)
    for specs in [
        (Y,), (IMAGE,), (TEXT,), (JSON,), (Y, TEXT), (IMAGE, JSON), (LABEL,), (LABEL, SCORES),
        (SCORES,), (LOGITS,), (Y, LABEL),
    ]
    if num_rows > 1 or specs in [(IMAGE,), (IMAGE, JSON)]
]  # fmt: skip


def whole(function: Any, *arguments: Any, **options: Any) -> bytes:
    """As if nothing were long."""
    with mock.patch.object(json_numbers, "PART_VALUES", 1 << 20):
        text: bytes = function(*arguments, **options)
    return text


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize(("batching", "num_rows", "specs"), CASES)
def test_parts_give_what_the_whole_gives(
    batching: Batching, num_rows: int, specs: tuple[TensorSpec, ...]
) -> None:
    made = response(batching, num_rows, *specs)
    for is_list in (False, True):
        for is_single in {False, num_rows == 1 and not is_list}:
            asked = {"is_list": is_list, "is_single": is_single}
            found = b"".join(answer_parts(made, **asked))
            assert orjson.loads(found) == orjson.loads(whole(answer_text, made, **asked))
    found = b"".join(predictions_parts(made))
    assert orjson.loads(found) == orjson.loads(whole(predictions_text, made))
    assert b"".join(outputs_parts(made)) == whole(outputs_text, made)


@pytest.mark.usefixtures("short_parts")
def test_scores_that_are_no_shares_in_one_row_are_none_in_any() -> None:
    made = response("rows", 9, LOGITS)
    made.rows.tensors["logits"].data[8] = 7
    answer = orjson.loads(b"".join(answer_parts(made, is_list=True, is_single=False)))
    assert answer.keys() == {"predictions", "model_version", "labels"}
    assert len(answer["labels"]) == 9


@pytest.mark.parametrize("spec", [Y, TEXT, JSON])
@pytest.mark.parametrize("batching", ["rows", "single"])
def test_what_is_long_is_not_written_at_once(spec: TensorSpec, batching: Batching) -> None:
    made = response(batching, PART_VALUES + 1, spec)
    with pytest.raises(LongText):
        answer_text(made, is_list=True, is_single=False)
    with pytest.raises(LongText):
        predictions_text(made)
    with pytest.raises(LongText):
        outputs_text(made)


@pytest.mark.parametrize("specs", [(Y,), (IMAGE,), (Y, TEXT), (Y, LABEL), (LABEL, SCORES)])
def test_no_step_writes_more_than_a_part(specs: tuple[TensorSpec, ...]) -> None:
    made = response("rows", 4 * PART_VALUES, *specs)
    sizes = []
    text = json_numbers.tensor_text

    def noted(tensor: Tensor, name: str, *, flat: bool) -> bytes:
        sizes.append(tensor.array().size)
        return text(tensor, name, flat=flat)

    with mock.patch.object(plain_response, "tensor_text", noted):
        found = b"".join(answer_parts(made, is_list=True, is_single=False))
    assert max(sizes) <= PART_VALUES
    assert len(sizes) >= 4
    assert len(orjson.loads(found)["predictions"]) == 4 * PART_VALUES
