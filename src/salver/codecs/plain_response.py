"""Answers of the plain door: predictions by row, with labels and probabilities by class."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from msgspec.structs import replace

from salver.codecs.json_numbers import (
    PART_VALUES,
    LongText,
    array_text,
    bytes_as_text,
    json_contents_text,
    plain_array,
    tensor_text,
    text_parts,
)
from salver.types import BYTES, Tensor

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from salver.signature import TensorSpec
    from salver.types import Array, Response

_SHARES_MAY_MISS: Final = 1e-3


def answer_text(response: Response, *, is_list: bool, is_single: bool) -> bytes:
    """The prediction, the version that made it, and a classifier's label and probabilities.

    `is_list`: several inputs were asked about; `is_single`: one was, without a batch dimension.
    Raises: Internal for bytes that JSON cannot carry; LongText.
    """
    text = _values(response, _plain_names(response))
    by_rows = response.method.batching == "rows"
    if is_single and by_rows:
        text = text[1:-1]
    elif is_list and not by_rows:
        text = b"[%b]" % text
    fields: dict[str, Any] = {"predictions" if is_list else "prediction": orjson.Fragment(text)}
    _note(fields, response, is_single)
    return orjson.dumps(fields)


def answer_parts(response: Response, *, is_list: bool, is_single: bool) -> Generator[bytes]:
    """The same in short steps."""
    names, key = _plain_names(response), b"predictions" if is_list else b"prediction"
    if response.method.batching == "rows" and not (is_single and _num_rows(response) == 1):
        yield from _table_parts(response, names, key)
        return
    brackets = (b"[", b"]") if is_list else (b"", b"")
    yield b'{"%b":%b' % (key, brackets[0])
    yield from _whole_parts(response, _own_tensors(response, names))
    fields: dict[str, Any] = {}
    _note(fields, response, is_single)
    yield brackets[1] + b"," + orjson.dumps(fields)[1:]


def predictions_text(response: Response) -> bytes:
    """`{"predictions": …}` and nothing else. Raises: Internal, LongText."""
    text = _values(response, response.names)
    if response.method.batching != "rows":
        text = b"[%b]" % text
    return b'{"predictions":%b}' % text


def predictions_parts(response: Response) -> Generator[bytes]:
    """The same in short steps."""
    opening = b'{"predictions":['
    if response.method.batching == "rows":
        for chunk in _chunks(response):
            yield opening
            yield from _row_parts(chunk, response.names)
            opening = b","
    else:
        yield opening
        yield from _whole_parts(response, _own_tensors(response, response.names))
    yield b"]}"


def outputs_text(response: Response) -> bytes:
    """`{"outputs": …}`: whole tensors by name, or the only one. Raises: Internal, LongText."""
    outputs = {
        name: orjson.Fragment(_text(response, name, response.tensor(name)))
        for name in response.names
    }
    only = next(iter(outputs.values())) if len(outputs) == 1 else outputs
    return orjson.dumps({"outputs": only})


def outputs_parts(response: Response) -> Generator[bytes]:
    """The same in short steps."""
    yield b'{"outputs":'
    yield from _whole_parts(response, response.tensors())
    yield b"}"


def _note(fields: dict[str, Any], response: Response, is_single: bool) -> None:
    """Adds what stands beside the predictions."""
    fields["model_version"] = response.ref.version
    labels, probabilities = _classes(response)
    if labels:
        fields |= {"label": labels[0]} if is_single else {"labels": labels}
    if probabilities:
        fields["probabilities"] = probabilities[0] if is_single else probabilities


def _table_parts(response: Response, names: Sequence[str], key: bytes) -> Iterator[bytes]:
    """All rows, some at a time, and then what was found out about them on the way."""
    labels: list[bytes] = []
    probabilities: list[bytes] = []
    have_shares = True
    opening = b'{"%b":[' % key
    for chunk in _chunks(response):
        yield opening
        yield from _row_parts(chunk, names)
        words, shares = _classes(chunk)
        labels.append(orjson.dumps(words)[1:-1])
        probabilities.append(orjson.dumps(shares)[1:-1])
        have_shares = have_shares and bool(shares)
        opening = b","
    yield b'],"model_version":%b' % orjson.dumps(response.ref.version)
    if words:
        yield b',"labels":[%b]' % b",".join(labels)
    if have_shares:
        yield b',"probabilities":['
        yield b",".join(probabilities)
        yield b"]"
    yield b"}"


def _chunks(response: Response) -> Iterator[Response]:
    """Some rows of an answer at a time, at least one."""
    arrays = [tensor.array() for tensor in response.tensors().values()]
    num_rows = _num_rows(response)
    step = max(1, PART_VALUES * num_rows // sum(array.size for array in arrays))
    for start in range(0, num_rows, step):
        first, stop = response.start + start, response.start + min(start + step, num_rows)
        yield replace(response, start=first, stop=stop)


def _row_parts(chunk: Response, names: Sequence[str]) -> Iterator[bytes]:
    """The rows of a chunk without the brackets around them."""
    try:
        yield _values(chunk, names)[1:-1]
    except LongText:
        yield from _whole_parts(chunk, _own_tensors(chunk, names))


def _num_rows(response: Response) -> int:
    return response.tensor(response.names[0]).shape[0]


def _own_tensors(response: Response, names: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of one input, without a batch dimension."""
    tensors = {name: response.tensor(name) for name in names}
    if response.method.batching == "rows":
        for name, tensor in tensors.items():
            shape = tensor.shape[1:]
            tensors[name] = Tensor(tensor.dtype, shape, tensor.array().reshape(shape))
    return tensors


def _whole_parts(response: Response, tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """One tensor's text, or for several an object of them."""
    opening = b"{"
    for name, tensor in tensors.items():
        if len(tensors) > 1:
            yield opening + orjson.dumps(name) + b":"
            opening = b","
        yield from text_parts(tensor, partial(_text, response, name))
    if len(tensors) > 1:
        yield b"}"


def _classes(response: Response) -> tuple[list[str], list[dict[str, Any]]]:
    """Every row's class name and its probabilities by class name, as far as the model has them."""
    label, scores = response.method.output("label"), response.method.output("probabilities")
    labels: list[str] = []
    if label is not None and label.name in response.names and (label.labels or scores):
        labels = _words(response, label)
    if label is None and scores is None:
        scores = _labelled(response)
    if scores is None or scores.name not in response.names:
        return labels, []
    matrix = _matrix(response, scores)
    classes = scores.labels or tuple(str(index) for index in range(matrix.shape[1]))
    if len(classes) != matrix.shape[1]:
        return labels, []
    if label is None:
        labels = [classes[int(index)] for index in matrix.argmax(axis=1)]
    if not (scores.role or _are_shares(matrix)):
        return labels, []
    values = orjson.loads(array_text(matrix))
    return labels, [dict(zip(classes, row, strict=True)) for row in values]


def _labelled(response: Response) -> TensorSpec | None:
    """The output with one number for each class that `model.yaml` names."""
    return next(
        (
            spec
            for spec in response.method.outputs
            if spec.labels and spec.dtype is not BYTES and 1 <= len(spec.shape) <= 2
        ),
        None,
    )


def _are_shares(matrix: Array) -> bool:
    """Every row is one of probabilities, not of logits or other scores."""
    sums = matrix.sum(axis=1, dtype=np.float64)
    return bool((matrix >= 0).all() and (np.abs(sums - 1) <= _SHARES_MAY_MISS).all())


def _plain_names(response: Response) -> tuple[str, ...]:
    """The outputs that are the prediction: not the probabilities that only accompany a label."""
    method = response.method
    if method.output("label") is None:
        return tuple(n for n in response.names if n in method.default_outputs()) or response.names
    accompanying = {spec.name for spec in method.outputs if spec.role == "probabilities"}
    return tuple(name for name in response.names if name not in accompanying)


def _values(response: Response, names: Sequence[str]) -> bytes:
    """One output's values, or for several an object per row. Raises: LongText."""
    texts = {name: _text(response, name, response.tensor(name)) for name in names}
    if len(names) == 1:
        return texts[names[0]]
    if response.method.batching != "rows":
        return orjson.dumps({name: orjson.Fragment(text) for name, text in texts.items()})
    columns = {name: orjson.loads(text) for name, text in texts.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return orjson.dumps(rows)


def _text(response: Response, name: str, tensor: Tensor) -> bytes:
    """Raises: Internal, LongText."""
    spec = next((spec for spec in response.method.outputs if spec.name == name), None)
    if spec is not None and spec.content == "json" and tensor.dtype is BYTES:
        return json_contents_text(tensor, name)
    return tensor_text(tensor, name, flat=False)


def _words(response: Response, spec: TensorSpec) -> list[str]:
    """Label values by name: an integer counts into the class names, text names itself."""
    tensor = response.tensor(spec.name)
    if tensor.dtype is BYTES:
        return [str(word) for word in bytes_as_text(tensor, spec.name).reshape(-1).tolist()]
    values = tensor.array(spec.name).reshape(-1).tolist()
    known = set(spec.labels)
    return [
        str(value)
        if str(value) in known
        else spec.labels[int(value)]
        if 0 <= value < len(spec.labels)
        else str(value)
        for value in values
    ]


def _matrix(response: Response, spec: TensorSpec) -> Array:
    array = plain_array(response.tensor(spec.name), spec.name)
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)
