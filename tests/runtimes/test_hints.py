from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypedDict

import msgspec
import numpy as np
import pytest

from salver.runtimes.hints import converter


@dataclasses.dataclass
class Part:
    weight: float
    inner: Part | None = None


class Order(TypedDict, total=False):
    count: int
    parts: list[Part]


@dataclasses.dataclass
class Everything:
    part: Part
    order: Order
    size: Literal["small", "large"]
    pair: tuple[int, bool]
    key: int | str
    other: Any
    text: str = "hello"


@dataclasses.dataclass
class Loop:
    loop: Loop


EVERYTHING = {
    "part": {"weight": 0.0, "inner": None},
    "order": {"count": 0, "parts": []},
    "size": "large",
    "pair": [0, False],
    "key": 0,
    "other": {},
    "text": "hello",
}


@pytest.mark.parametrize(
    ("hint", "example"),
    [(Everything, EVERYTHING), (dict, {}), (dict[str, float], {}), (list[int] | None, [])],
)
def test_the_example_of_a_json_input_is_one_that_it_takes(hint: Any, example: Any) -> None:
    made = converter(hint)
    assert made.example == example
    made.decode(np.array(msgspec.json.encode(made.example), np.object_), "x")


def test_a_type_that_needs_itself_has_an_example_that_ends() -> None:
    assert converter(Loop).example == {"loop": None}
