from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from salver.config import Limits, ModelConfig
from salver.protocols.kserve_v2 import KserveV2
from salver.protocols.plain import PlainDoor
from salver.server.openapi import describe
from salver.server.pages import Pages
from salver.server.router import Router
from salver.signature import Method, Signature, TensorSpec
from salver.types import BOOL, BYTES, FP32, INT64, ModelRef

LIMITS = Limits()
ROUTER = Router([PlainDoor(LIMITS), KserveV2(LIMITS), Pages()])


def generation(
    name: str, *inputs: TensorSpec, batching: Any = "rows", max_rows: int = 0, **config: Any
) -> Any:
    """As much of a generation as a description needs."""
    output = TensorSpec(name="y", dtype=FP32, shape=(-1, 3))
    method = Method(inputs=inputs, outputs=(output,), batching=batching, max_rows=max_rows)
    return SimpleNamespace(
        ref=ModelRef(name, "3"),
        config=ModelConfig(**config),
        signature=Signature({"predict": method}),
    )


def rows(name: str, dtype: Any, *dims: int, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(-1, *dims), **more)


def body_of(*inputs: TensorSpec, **more: Any) -> dict[str, Any]:
    found = describe(ROUTER, [generation("m", *inputs, **more)], keyed=False)
    body: dict[str, Any] = found["paths"]["/predict/m"]["post"]["requestBody"]
    return body["content"]


def example_of(*inputs: TensorSpec, **more: Any) -> Any:
    return body_of(*inputs, **more)["application/json"]["examples"]["one"]["value"]["input"]


def test_every_endpoint_is_described_once() -> None:
    found = describe(ROUTER, [], keyed=False)
    described = {(m.upper(), path) for path, item in found["paths"].items() for m in item}
    offered = [endpoint for endpoint in ROUTER.endpoints if endpoint.is_offered]
    assert described == {(m, e.path) for e in offered for m in e.methods}
    operations = [operation for item in found["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_every_operation_has_a_tag_that_is_explained() -> None:
    found = describe(ROUTER, [generation("m", rows("x", FP32, 2))], keyed=False)
    explained = {tag["name"] for tag in found["tags"] if tag["description"]}
    used = {op["tags"][0] for item in found["paths"].values() for op in item.values()}
    assert used == explained
    assert "Models" in used


def test_every_argument_of_a_path_is_a_parameter() -> None:
    for path, item in describe(ROUTER, [], keyed=False)["paths"].items():
        for operation in item.values():
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            assert names == re.findall(r"\{(\w+)\}", path)


def test_references_lead_somewhere() -> None:
    document = describe(ROUTER, [generation("m", rows("x", FP32, 2))], keyed=True)
    for reference in re.findall(r"'\$ref': '#/([^']+)'", str(document)):
        place: Any = document
        for step in reference.split("/"):
            place = place[step]


def test_a_key_is_asked_for_only_where_there_is_one() -> None:
    assert "security" not in describe(ROUTER, [], keyed=False)
    document = describe(ROUTER, [], keyed=True)
    assert document["security"] == [{"key": []}]
    assert "key" in document["components"]["securitySchemes"]


@pytest.mark.parametrize(
    ("spec", "example"),
    [
        (rows("x", FP32, 2), [0.0, 0.0]),
        (rows("x", INT64, 1, -1), [[0]]),
        (rows("x", BOOL, 2), [False, False]),
        (rows("x", BYTES, 1, content="text"), ["text"]),
        (rows("x", FP32, 2, columns=("a", "b")), {"a": 0, "b": 0}),
    ],
)
def test_examples_fit_the_input(spec: TensorSpec, example: Any) -> None:
    assert example_of(spec) == example


def test_the_author_knows_better_examples() -> None:
    assert example_of(rows("x", FP32, 2), example=[5.1, 3.5]) == [5.1, 3.5]


def test_json_has_the_example_of_its_type() -> None:
    order = TensorSpec(name="x", dtype=BYTES, shape=(), content="json", example={"price": 0.0})
    assert example_of(order, batching="single") == {"price": 0.0}


def test_several_inputs_go_by_name() -> None:
    found = example_of(rows("a", FP32, 1), rows("b", INT64), rows("c", FP32, 9, optional=True))
    assert found == {"a": [0.0], "b": 0}


def test_columns_of_numbers_beside_text_are_values_that_may_be_missing() -> None:
    age, city = rows("age", FP32, columns=("age",)), rows("city", BYTES, content="text")
    assert example_of(age, city) == {"age": 0.0, "city": "text"}
    one = body_of(age, city)["application/json"]["schema"]["properties"]["input"]
    assert one["properties"]["age"] == {"type": ["number", "null"]}
    assert one["required"] == ["city"]


def test_a_picture_is_sent_as_it_is() -> None:
    spec = TensorSpec(name="x", dtype=BYTES, shape=(), content="image")
    assert body_of(spec, batching="items") == {
        "image/*": {"schema": {"type": "string", "format": "binary"}}
    }


def test_no_example_has_more_rows_than_the_model_takes() -> None:
    x = rows("x", FP32, 2)
    assert list(body_of(x)["application/json"]["examples"]) == ["one", "several"]
    assert list(body_of(x, max_rows=1)["application/json"]["examples"]) == ["one"]


def test_large_inputs_have_no_example() -> None:
    assert "examples" not in body_of(rows("x", FP32, 3, 224, 224))["application/json"]


def test_general_paths_show_one_of_the_models() -> None:
    paths = describe(ROUTER, [generation("m", rows("x", FP32, 2))], keyed=False)["paths"]

    def example(path: str) -> Any:
        return paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]

    assert example("/v1/models/{model}:predict") == {"instances": [[0.0, 0.0]]}
    assert example("/predict/{model}") == {"inputs": [[0.0, 0.0]]}
    assert example("/v2/models/{model}/infer") == {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]}]
    }
    (parameter,) = paths["/predict/{model}"]["post"]["parameters"]
    assert parameter["example"] == "m"
