"""The plain door: JSON, CSV or a file in, predictions out.

`:predict` speaks as TensorFlow Serving does; `/predict` answers with labels and probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from salver.codecs.csv_rows import decode_csv
from salver.codecs.json_numbers import (
    array_text,
    bytes_as_text,
    dumps,
    json_contents_text,
    plain_array,
    tensor_text,
)
from salver.codecs.long_array import LongArray, loads_long
from salver.codecs.status import json_refusal
from salver.errors import InvalidInput, UnsupportedMedia, did_you_mean
from salver.interfaces import JSON_HEADERS, Endpoint, HttpAnswer, Infer, Query
from salver.types import BYTES, ModelRef, Object, Raw, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from salver.config import Limits
    from salver.errors import SalverError
    from salver.interfaces import Head
    from salver.signature import TensorSpec
    from salver.types import Array, Buffer, Response, Schema

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
          b"RIFF": "image/webp", b"BM": "image/bmp"}  # fmt: skip
_SHARES_MAY_MISS: Final = 1e-3
_KEYS: dict[str, Schema] = {"instances": "rows", "input": "row", "inputs": "rows"}
_COLUMNS: Final = "columns"
"""TensorFlow Serving's other form: whole tensors as `inputs`, and so as `outputs`."""
_MODEL: Final = "/v1/models/{model}"


class PlainDoor:
    """`/v1/models/NAME[:predict]` and `POST /predict[/NAME[/METHOD]]`."""

    name = "plain"

    def __init__(self, limits: Limits) -> None:
        self._max_depth = limits.json_depth

    def endpoints(self) -> Sequence[Endpoint]:
        decode, door = self._decode_predict, ("POST", "PUT")
        return (
            Endpoint(
                ("GET",), "/v1/models", "Names of models.", _query("model_names"), encode_names
            ),
            *self._of_model(_MODEL, ""),
            *self._of_model(f"{_MODEL}/versions/{{version}}", ", of one version"),
            *self._of_model(f"{_MODEL}/labels/{{version}}", ", by a version's label"),
            Endpoint(
                door, "/predict", "The only model that is served.", decode, encode_answer,
                stream_item,
            ),
            Endpoint(
                door, "/predict/{model}", "Prediction, label and probabilities.", decode,
                encode_answer, stream_item,
            ),
            Endpoint(
                door, "/predict/{model}/{method}", "The same by another method.", decode,
                encode_answer, stream_item,
            ),
        )  # fmt: skip

    def _of_model(self, path: str, remark: str) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                ("POST",), f"{path}:predict", f"Predictions for `instances`, or `inputs`{remark}.",
                self._decode_instances, encode_predictions,
            ),
            Endpoint(
                ("GET",), path, f"Readiness and states of versions{remark}.",
                _query("model_status"), encode_status,
            ),
        )  # fmt: skip

    def refuse(self, error: SalverError) -> HttpAnswer:
        return json_refusal(error)

    def _decode_instances(self, head: Head, arguments: Mapping[str, str], body: Any) -> Infer:
        value = loads_long(body, self._max_depth)
        if not isinstance(value, dict) or ("instances" in value) == ("inputs" in value):
            known = ", ".join(value) if isinstance(value, dict) else "no object"
            raise InvalidInput(f'expected {{"instances": [...]}} or {{"inputs": ...}}, got {known}')
        method = value.get("signature_name", "")
        instances = value.get("instances", [])
        if not isinstance(method, str) or not isinstance(instances, list | LongArray):
            raise InvalidInput("instances must be a list, signature_name a string")
        ref = ModelRef(arguments["model"], arguments.get("version", ""))
        # TensorFlow's clients send the name of its default signature, which is every model's first.
        method = "" if method == "serving_default" else method
        if "inputs" in value:
            payload = Object("row", value["inputs"])
            return Infer(ref=ref, request=Request(payload, method), encoding=_COLUMNS)
        return Infer(ref=ref, request=Request(Object("rows", instances), method))

    def _decode_predict(self, head: Head, arguments: Mapping[str, str], body: Any) -> Infer:
        payload = self._payload(head.headers.get("content-type", ""), body)
        request = Request(payload, arguments.get("method", ""), with_roles=True)
        return Infer(ref=ModelRef(arguments.get("model", "")), request=request)

    def _payload(self, content_type: str, body: Buffer) -> Object | Raw:
        """What the body holds: said by the content type, or seen in its first bytes."""
        media = content_type.partition(";")[0].strip().lower()
        if not len(body):
            raise InvalidInput('the body is empty; send {"input": ...}, CSV or a file')
        # curl calls everything a form unless it is told otherwise.
        if media in ("", "application/x-www-form-urlencoded", "application/octet-stream"):
            media = _sniff(body)
        if media == "application/json" or media.endswith("+json"):
            return self._json(body)
        if media == "text/csv":
            return decode_csv(body)
        if media == "multipart/form-data":
            raise UnsupportedMedia("forms are not taken; send the file itself: curl -T FILE URL")
        return Raw(body, media)

    def _json(self, body: Buffer) -> Object:
        value = loads_long(body, self._max_depth)
        if isinstance(value, list | LongArray):
            return Object("auto", value)
        if isinstance(value, dict):
            for key, schema in _KEYS.items():
                if key in value and len(value) == 1:
                    return _object(schema, key, value[key])
            known = [key for key in value if key not in _KEYS]
            hint = did_you_mean(str(known[0]), _KEYS) if known else ""
            got = ", ".join(value) or "an empty object"
            raise InvalidInput(
                f'expected {{"input": ...}} or {{"inputs": [...]}}, got {got}.{hint}'
            )
        raise InvalidInput('expected {"input": ...}, {"inputs": [...]} or an array')


def _query(name: str) -> Callable[[Head, Mapping[str, str], Any], Query]:
    def decode(head: Head, arguments: Mapping[str, str], body: Any) -> Query:
        return Query(name=name, arguments=arguments)

    return decode


def _object(schema: Schema, key: str, value: Any) -> Object:
    if schema == "rows" and not isinstance(value, list | LongArray):
        raise InvalidInput(f"{key!r} must be a list; one input goes under 'input'")
    if schema == "rows" and not value:
        raise InvalidInput(f"{key!r} is empty; send at least one input")
    return Object(schema, value)


def _sniff(body: Buffer) -> str:
    start = bytes(body[:64])
    for magic, media in _MAGIC.items():
        if start.startswith(magic):
            return media
    if start.lstrip()[:1] in (b"{", b"["):
        return "application/json"
    if b"\x00" in start:
        return "application/octet-stream"
    line = bytes(body[:4096]).partition(b"\n")[0]
    return "text/csv" if b"," in line else "text/plain"


def encode_names(operation: Query, value: dict[str, list[str]]) -> HttpAnswer:
    """`{"models": […]}`."""
    return HttpAnswer(200, JSON_HEADERS, [dumps(value)])


def encode_status(operation: Query, value: dict[str, Any]) -> HttpAnswer:
    """200 or 503, as KServe's probes need it, and the states in the body."""
    return HttpAnswer(200 if value["ready"] else 503, JSON_HEADERS, [dumps(value)])


def encode_predictions(operation: Infer, response: Response) -> HttpAnswer:
    """`{"predictions": …}`, or `{"outputs": …}` for `inputs`, and nothing else."""
    if operation.encoding == _COLUMNS:
        outputs = {name: orjson.Fragment(_text(response, name)) for name in response.names}
        only = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        return HttpAnswer(200, JSON_HEADERS, [orjson.dumps({"outputs": only})])
    text = _values(response, response.names)
    if response.method.batching != "rows":
        text = b"[%b]" % text
    return HttpAnswer(200, JSON_HEADERS, [b'{"predictions":', text, b"}"])


def encode_answer(operation: Infer, response: Response) -> HttpAnswer:
    """The prediction, the version that made it, and a classifier's label and probabilities."""
    payload = operation.request.payload
    if isinstance(payload, Object):
        return HttpAnswer(200, JSON_HEADERS, [_answer(response, payload.schema, payload.is_single)])
    return HttpAnswer(200, JSON_HEADERS, [_answer(response, "row", True)])


def stream_item(operation: Infer, response: Response) -> bytes:
    """One item of a stream as a line of JSON."""
    return _answer(response, "row", True) + b"\n"


def _answer(response: Response, schema: Schema, is_single: bool) -> bytes:
    text = _values(response, _plain_names(response))
    by_rows = response.method.batching == "rows"
    asked_for_one = schema == "row"
    if asked_for_one and is_single and by_rows:
        text = text[1:-1]
    elif not asked_for_one and not by_rows:
        text = b"[%b]" % text
    fields: dict[str, Any] = {
        "prediction" if asked_for_one else "predictions": orjson.Fragment(text),
        "model_version": response.ref.version,
    }
    labels, probabilities = _classes(response)
    if asked_for_one and is_single:
        fields |= {"label": labels[0]} if labels else {}
        fields |= {"probabilities": probabilities[0]} if probabilities else {}
    else:
        fields |= {"labels": labels} if labels else {}
        fields |= {"probabilities": probabilities} if probabilities else {}
    return orjson.dumps(fields)


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
    """One output's values, or for several an object per row."""
    texts = {name: _text(response, name) for name in names}
    if len(names) == 1:
        return texts[names[0]]
    if response.method.batching != "rows":
        return orjson.dumps({name: orjson.Fragment(text) for name, text in texts.items()})
    columns = {name: orjson.loads(text) for name, text in texts.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return orjson.dumps(rows)


def _text(response: Response, name: str) -> bytes:
    tensor = response.tensor(name)
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
