"""The plain door: JSON, CSV or a file in, predictions out.

`:predict` speaks as TensorFlow Serving does; `/predict` answers with labels and probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from salver.codecs.csv_rows import decode_csv
from salver.codecs.json_numbers import LongText, dumps
from salver.codecs.long_array import LongArray, loads_long
from salver.codecs.plain_response import (
    answer_parts,
    answer_text,
    outputs_parts,
    outputs_text,
    predictions_parts,
    predictions_text,
)
from salver.codecs.status import json_refusal
from salver.errors import InvalidInput, UnsupportedMedia, did_you_mean
from salver.interfaces import JSON_HEADERS, Endpoint, HttpAnswer, Infer, Query
from salver.protocols.common import answer, query
from salver.types import ModelRef, Object, Raw, Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from salver.config import Limits
    from salver.errors import SalverError
    from salver.interfaces import Head
    from salver.types import Buffer, Response, Schema

_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif",
          b"RIFF": "image/webp", b"BM": "image/bmp"}  # fmt: skip
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
            Endpoint(("GET",), "/v1/models", "Names of models.", query("model_names"), answer),
            *self._of_model(_MODEL, ""),
            *self._of_model(f"{_MODEL}/versions/{{version}}", ", of one version"),
            *self._of_model(f"{_MODEL}/labels/{{version}}", ", by a version's label"),
            Endpoint(
                door, "/predict", "The only model that is served.", decode, encode_answer,
                stream_item, is_inference=True,
            ),
            Endpoint(
                door, "/predict/{model}", "Prediction, label and probabilities.", decode,
                encode_answer, stream_item, is_inference=True,
            ),
            Endpoint(
                door, "/predict/{model}/{method}", "The same by another method.", decode,
                encode_answer, stream_item, is_inference=True,
            ),
        )  # fmt: skip

    def _of_model(self, path: str, remark: str) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                ("POST",), f"{path}:predict", f"Predictions for `instances`, or `inputs`{remark}.",
                self._decode_instances, encode_predictions, is_inference=True,
            ),
            Endpoint(
                ("GET",), path, f"Readiness and states of versions{remark}.",
                query("model_status"), encode_status,
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


def encode_status(operation: Query, value: dict[str, Any]) -> HttpAnswer:
    """200 or 503, as KServe's probes need it, and the states in the body."""
    return HttpAnswer(200 if value["ready"] else 503, JSON_HEADERS, [dumps(value)])


def encode_predictions(operation: Infer, response: Response) -> HttpAnswer:
    """`{"predictions": …}`, or `{"outputs": …}` for `inputs`, and nothing else."""
    is_whole = operation.encoding == _COLUMNS
    try:
        text = outputs_text(response) if is_whole else predictions_text(response)
    except LongText:
        parts = outputs_parts(response) if is_whole else predictions_parts(response)
        return HttpAnswer(200, JSON_HEADERS, parts)
    return HttpAnswer(200, JSON_HEADERS, [text])


def encode_answer(operation: Infer, response: Response) -> HttpAnswer:
    """The prediction, the version that made it, and a classifier's label and probabilities."""
    payload = operation.request.payload
    is_list, is_single = False, True
    if isinstance(payload, Object):
        is_list, is_single = payload.schema != "row", payload.is_single and payload.schema == "row"
    try:
        text = answer_text(response, is_list=is_list, is_single=is_single)
    except LongText:
        parts = answer_parts(response, is_list=is_list, is_single=is_single)
        return HttpAnswer(200, JSON_HEADERS, parts)
    return HttpAnswer(200, JSON_HEADERS, [text])


def stream_item(operation: Infer, response: Response) -> bytes:
    """One item of a stream as a line of JSON."""
    try:
        return answer_text(response, is_list=False, is_single=True) + b"\n"
    except LongText:
        return b"".join(answer_parts(response, is_list=False, is_single=True)) + b"\n"
