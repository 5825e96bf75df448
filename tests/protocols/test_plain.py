from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.codecs.bind import bind
from salver.config import Limits
from salver.errors import InvalidInput, NotFound, SalverError, TooLarge, UnsupportedMedia
from salver.protocols.plain import PlainDoor, encode_answer, encode_predictions, stream_item
from salver.signature import Method, TensorSpec
from salver.testing import check_protocol
from salver.types import (
    BYTES,
    FP32,
    INT64,
    ModelRef,
    Object,
    Raw,
    Response,
    Rows,
    Tensor,
    Tensors,
)

DOOR = PlainDoor(Limits(json_depth=16))
ENDPOINTS = {endpoint.path: endpoint for endpoint in DOOR.endpoints()}
X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
Y = TensorSpec(name="y", dtype=FP32, shape=(-1, 1))
LABEL = TensorSpec(name="label", dtype=INT64, shape=(-1,), role="label", labels=("no", "yes"))
SCORES = TensorSpec(
    name="scores",
    dtype=FP32,
    shape=(-1, 2),
    role="probabilities",
    on_request=True,
    labels=("no", "yes"),
)


def decode(body, media="", path="/predict/{model}", **arguments):
    head = SimpleNamespace(headers={"content-type": media})
    return ENDPOINTS[path].decode(head, {"model": "m", **arguments}, body)


def payload(body, media=""):
    return decode(body, media).request.payload


def answered(operation, outputs, method_outputs, batching="rows", encode=encode_answer):
    method = Method(inputs=(X,), outputs=method_outputs, batching=batching)
    if isinstance(operation.request.payload, Object):
        bind(method, operation.request.payload)
    tensors = Tensors({name: Tensor.of(value) for name, value in outputs.items()})
    response = Response(Rows(tensors), ModelRef("m", "3"), method, tuple(tensors))
    answer = encode(operation, response)
    assert answer.status == 200
    return orjson.loads(b"".join(answer.body))


def test_states_of_a_model_tell_probes_by_the_status() -> None:
    endpoint = ENDPOINTS["/v1/models/{model}/versions/{version}"]
    arguments = {"model": "m", "version": "1"}
    query = endpoint.decode(SimpleNamespace(headers={}), arguments, b"")
    assert (query.name, query.arguments) == ("model_status", arguments)
    for ready, status in ((True, 200), (False, 503)):
        value = {"name": "m", "ready": ready, "model_version_status": []}
        answer = endpoint.encode(query, value)
        assert (answer.status, orjson.loads(b"".join(answer.body))) == (status, value)


@pytest.mark.parametrize(
    ("body", "schema", "value"),
    [
        (b'{"input": [1, 2]}', "row", [1, 2]),
        (b'{"inputs": [[1, 2]]}', "rows", [[1, 2]]),
        (b'{"instances": [[1, 2]]}', "rows", [[1, 2]]),
        (b" [1, 2]", "auto", [1, 2]),
    ],
)
@pytest.mark.parametrize(
    "media",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.x+json",
        "",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
    ],
)
def test_json(body, schema, value, media):
    assert payload(body, media) == Object(schema, value)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "the body is empty"),
        (b"{}", 'expected {"input": ...} .*, got an empty object'),
        (b'{"inputs": []}', "'inputs' is empty"),
        (b'{"imput": 1}', "Did you mean 'input'"),
        (b'{"input": 1, "inputs": [2]}', "got input, inputs"),
        (b'{"inputs": 1}', "'inputs' must be a list"),
        (b"[1", "line 1"),
        (b"5", "is not valid JSON|expected"),
    ],
)
def test_json_that_is_something_else(body, match):
    with pytest.raises(InvalidInput, match=match):
        payload(body, "application/json")


def test_depth_is_bounded():
    with pytest.raises(TooLarge):
        payload(b"[" * 17 + b"]" * 17)


@pytest.mark.parametrize(
    ("body", "media", "expected"),
    [
        (b"\x89PNG\r\n", "", "image/png"),
        (b"\xff\xd8\xff\xe0", "application/octet-stream", "image/jpeg"),
        (b"GIF89a", "application/x-www-form-urlencoded", "image/gif"),
        (b"\x01\x00", "", "application/octet-stream"),
        (b"hello", "", "text/plain"),
        (b"{}", "text/plain", "text/plain"),
        (b"x", "Audio/WAV; rate=1", "audio/wav"),
    ],
)
def test_files(body, media, expected):
    assert payload(body, media) == Raw(body, expected)


def test_forms_are_refused_with_the_remedy():
    with pytest.raises(UnsupportedMedia, match="curl -T FILE URL"):
        payload(b"--x", "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"a,b\n1,2\n3,\n", {"a": ["1", "3"], "b": ["2", ""]}),
        (b"\xef\xbb\xbfa , b\r\n1,2\r\n", {"a": ["1"], "b": ["2"]}),
        (b'"a,b","c\nd"\n\n"1""",2', {"a,b": ['1"'], "c\nd": ["2"]}),
        (b"a,b\r1,2\r3,4\r", {"a": ["1", "3"], "b": ["2", "4"]}),
    ],
)
def test_csv_with_names(body, expected):
    assert payload(body, "text/csv") == Object("columns", expected)
    assert payload(bytearray(body), "text/csv; header=present") == Object("columns", expected)


@pytest.mark.parametrize("body", [b"1,,3\n4,5,6\n", b"1,nan,3\n4,5,6", b" 1 ,,3.0\r\n4,5,6"])
def test_csv_without_names(body):
    found = payload(body)
    assert found.schema == "rows"
    np.testing.assert_array_equal(found.value, [[1, np.nan, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"a,b\n1\n", "line 2 has 1 cells, the first has 2"),
        (b"a,b\n1,2\n\n1,2,3", "line 4 has 3 cells"),
        (b"a,b\n", "no rows"),
        (b"\n\n", "empty"),
        (b",b\nx,1", "column 1 has no name"),
        (b"a,a\n1,2", "two columns are called .a."),
        (b"1,2\n3,x", "column 2', row 2: 'x' is not a number"),
        (b"\xff,b\n1,2", "UTF-8"),
        (b"a," + b"x" * 200_000 + b"\n1,2", "not valid CSV"),
    ],
)
def test_tables_that_are_none(body, match):
    with pytest.raises(InvalidInput, match=match):
        payload(body, "text/csv")


def test_instances():
    path = "/v1/models/{model}/versions/{version}:predict"
    found = decode(b'{"instances": [1], "signature_name": "top"}', path=path, version="2")
    assert found.ref == ModelRef("m", "2")
    assert found.request.method == "top"
    assert found.request.payload == Object("rows", [1])
    default = decode(b'{"instances": [1], "signature_name": "serving_default"}', path=path)
    assert default.request.method == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"instances": 1}',
        b'{"instances": [], "signature_name": 1}',
        b'{"instances": [], "inputs": []}',
    ],
)
def test_instances_that_are_none(body):
    with pytest.raises(InvalidInput):
        decode(body, path="/v1/models/{model}:predict")


V1 = "/v1/models/{model}:predict"


@pytest.mark.parametrize("inputs", [b"[[1, 2], [3, 4]]", b'{"x": [[1, 2], [3, 4]]}'])
def test_whole_tensors_as_tensorflow_serving_takes_them(inputs):
    operation = decode(b'{"inputs": %b}' % inputs, path=V1)
    bound = bind(Method(inputs=(X,), outputs=(Y,), batching="rows"), operation.request.payload)
    assert bound["x"].array().tolist() == [[1, 2], [3, 4]]
    one = answered(operation, {"y": np.float32([[1], [2]])}, (Y,), encode=encode_predictions)
    assert one == {"outputs": [[1.0], [2.0]]}
    both = {"y": np.float32([[1], [2]]), "label": np.array([1, 0])}
    several = answered(operation, both, (Y, LABEL), encode=encode_predictions)
    assert several == {"outputs": {"y": [[1.0], [2.0]], "label": [1, 0]}}


def test_the_method_stands_in_the_path():
    found = decode(b"[1]", path="/predict/{model}/{method}", method="top")
    assert (found.request.method, found.request.with_roles) == ("top", True)
    assert decode(b"[1]", path="/predict").ref == ModelRef("m")


def test_one_input_gets_one_prediction():
    operation = decode(b'{"input": [1, 2]}')
    value = answered(operation, {"y": np.float32([[0.5]])}, (Y,))
    assert value == {"prediction": [0.5], "model_version": "3"}


def test_a_whole_batch_under_input_gets_all_predictions():
    operation = decode(b'{"input": [[1, 2], [3, 4]]}')
    value = answered(operation, {"y": np.float32([[0.5], [np.nan]])}, (Y,))
    assert value == {"prediction": [[0.5], ["NaN"]], "model_version": "3"}


@pytest.mark.parametrize("body", [b'{"inputs": [[1, 2]]}', b"1,2", b"a,b\n1,2"])
def test_several_inputs_get_predictions(body):
    value = answered(decode(body), {"y": np.float32([[0.5]])}, (Y,))
    assert value == {"predictions": [[0.5]], "model_version": "3"}


CLASSES = {"label": np.array([1, 0]), "scores": np.float32([[0.25, 0.75], [1, 0]])}


def test_a_classifier_names_its_classes():
    value = answered(decode(b'{"inputs": [[1, 2], [3, 4]]}'), CLASSES, (LABEL, SCORES))
    assert value == {
        "predictions": [1, 0],
        "model_version": "3",
        "labels": ["yes", "no"],
        "probabilities": [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}],
    }
    one = {name: array[:1] for name, array in CLASSES.items()}
    value = answered(decode(b'{"input": [1, 2]}'), one, (LABEL, SCORES))
    assert value == {
        "prediction": 1,
        "model_version": "3",
        "label": "yes",
        "probabilities": {"no": 0.25, "yes": 0.75},
    }


def test_classes_without_names_go_by_their_numbers():
    label = TensorSpec(name="label", dtype=INT64, shape=(-1,), role="label")
    scores = TensorSpec(name="scores", dtype=FP32, shape=(-1, 2), role="probabilities")
    value = answered(decode(b"[[1, 2], [3, 4]]"), CLASSES, (label, scores))
    assert value["predictions"] == [1, 0]
    assert value["labels"] == ["1", "0"]
    assert value["probabilities"][0] == {"0": 0.25, "1": 0.75}


def test_probabilities_alone_give_the_best_class():
    scores = TensorSpec(name="scores", dtype=FP32, shape=(-1, 2), role="probabilities")
    value = answered(decode(b"[[1, 2]]"), {"scores": np.float32([[0.25, 0.75]])}, (scores,))
    assert value["labels"] == ["1"]
    assert value["probabilities"] == [{"0": 0.25, "1": 0.75}]


@pytest.mark.parametrize(
    ("values", "probabilities"),
    [
        ([[0.25, 0.7505]], [{"no": 0.25, "yes": 0.7505}]),
        ([[0.25, 0.76]], None),
        ([[-1.5, 2.5]], None),
    ],
)
def test_an_output_with_class_names_gives_the_best_class(values, probabilities):
    output = TensorSpec(name="y", dtype=FP32, shape=(-1, 2), labels=("no", "yes"))
    value = answered(decode(b"[[1, 2]]"), {"y": np.float32(values)}, (output,))
    assert value["labels"] == ["yes"]
    assert value.get("probabilities") == probabilities
    assert len(value["predictions"][0]) == 2


def test_class_names_of_pixels_name_no_row():
    output = TensorSpec(name="y", dtype=FP32, shape=(-1, 1, 2), labels=("no", "yes"))
    value = answered(decode(b"[[1, 2]]"), {"y": np.float32([[[0, 1]]])}, (output,))
    assert "labels" not in value


def test_labels_that_are_text_or_beyond_the_names():
    text = TensorSpec(name="label", dtype=BYTES, shape=(-1,), role="label", labels=("no", "yes"))
    outputs = {"label": np.array(["yes"], np.object_)}
    assert answered(decode(b"[[1, 2]]"), outputs, (text,))["labels"] == ["yes"]
    value = answered(decode(b"[[1, 2]]"), {"label": np.array([7])}, (LABEL,))
    assert value["labels"] == ["7"]


def test_several_outputs_are_objects_by_row():
    outputs = {"y": np.float32([[1], [2]]), "z": np.array(["a", "b"], np.object_)}
    specs = (Y, TensorSpec(name="z", dtype=BYTES, shape=(-1,)))
    value = answered(decode(b'{"inputs": [[1, 2], [3, 4]]}'), outputs, specs)
    assert value["predictions"] == [{"y": [1.0], "z": "a"}, {"y": [2.0], "z": "b"}]


def test_models_without_rows():
    specs = (TensorSpec(name="y", dtype=BYTES, shape=(), content="json"),)
    outputs = {"y": np.array(b'{"a": [1]}', np.object_)}
    operation = decode(b'{"input": [1, 2]}')
    assert answered(operation, outputs, specs, "single")["prediction"] == {"a": [1]}
    operation = decode(b'{"inputs": [[1, 2]]}')
    assert answered(operation, outputs, specs, "single")["predictions"] == [{"a": [1]}]


def test_predictions_and_nothing_else():
    operation = decode(b'{"instances": [[1, 2]]}', path="/v1/models/{model}:predict")
    value = answered(operation, {"y": np.float32([[1]])}, (Y,), encode=encode_predictions)
    assert value == {"predictions": [[1.0]]}


def test_a_file_gets_one_prediction():
    value = answered(decode(b"\x89PNG"), {"label": np.array([1])}, (LABEL,))
    assert value == {"prediction": 1, "model_version": "3", "label": "yes"}


def test_items_of_a_stream_are_lines():
    method = Method(inputs=(X,), outputs=(Y,), streams=True)
    response = Response(
        Rows(Tensors({"y": Tensor.of(np.array("a\nb", np.object_))})),
        ModelRef("m", "3"),
        method,
        ("y",),
    )
    line = stream_item(decode(b"[1]"), response)
    assert line == b'{"prediction":"a\\nb","model_version":"3"}\n'


def test_it_keeps_its_contract():
    rows, table = b'{"instances": [[1, 2]]}', b"a,b\n1,2\n"
    paths = [path for path in ENDPOINTS if path.endswith(":predict")]
    check_protocol(DOOR, dict.fromkeys(ENDPOINTS, table) | dict.fromkeys(paths, rows))


def test_errors():
    answer = DOOR.refuse(NotFound("nothing here"))
    assert answer.status == 404
    assert orjson.loads(answer.body[0]) == {"error": "nothing here"}


@given(
    body=st.one_of(st.binary(max_size=40), st.text('a1,."\n\r{}[] ', max_size=40).map(str.encode)),
    media=st.sampled_from(["", "application/json", "text/csv", "text/plain"]),
)
def test_any_body_is_a_payload_or_an_error(body, media):
    try:
        found = payload(body, media)
        if isinstance(found, Object):
            bind(Method(inputs=(X,), outputs=(), batching="rows"), found)
    except SalverError:
        return
