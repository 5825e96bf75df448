from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import orjson
import pytest

from salver.codecs.bind import bind
from salver.codecs.long_array import loads_long
from salver.engine import each as each_module
from salver.engine.each import Each, bound, parts_of
from salver.errors import (
    Cancelled,
    InvalidInput,
    ModelFailed,
    Overloaded,
    SalverError,
    Unavailable,
    Undeliverable,
    Unsupported,
)
from salver.signature import Method, TensorSpec
from salver.types import (
    BYTES,
    FP32,
    NO_CONTEXT,
    Call,
    ModelRef,
    Object,
    Request,
    Response,
    Rows,
    Tensor,
    Tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from salver.types import Schema

ROWS = Method(
    inputs=(TensorSpec(name="x", dtype=FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=(-1, 2)),),
    batching="rows",
    max_rows=2,
)
TEXT = Method(
    inputs=(TensorSpec(name="t", dtype=BYTES, shape=(), content="text"),),
    outputs=(TensorSpec(name="y", dtype=FP32, shape=()),),
)
NUMBERS = Method(inputs=(TensorSpec(name="x", dtype=FP32, shape=(-1,)),), outputs=())
TABLE = {"x0": ["1", "1", "1"], "x1": ["2", "2", "2"]}


def table_parts() -> Iterator[dict[str, list[str]]]:
    for length in (2, 1):
        yield {name: column[:length] for name, column in TABLE.items()}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("rows", [[1, 2]] * 3),
        ("auto", [[1, 2]] * 3),
        ("rows", np.array([[1, 2]] * 3)),
        ("columns", TABLE),
        ("columns", table_parts),
    ],
)
@pytest.mark.parametrize("is_long", [False, True])
def test_more_rows_than_a_call_may_have_are_divided(
    schema: Schema, value: Any, is_long: bool
) -> None:
    payload = Object(schema, value() if callable(value) else value)
    if is_long:
        payload = bound(ROWS, payload)  # type: ignore[assignment]
        assert payload.schema == "calls"
    parts: Any = parts_of(ROWS, payload)
    assert [part["x"].array().tolist() for part in parts] == [[[1, 2]] * 2, [[1, 2]]]


@pytest.mark.parametrize(
    ("method", "payload", "expected"),
    [
        (TEXT, Object("rows", ["a"]), "a"),
        (TEXT, Object("row", "ab"), "ab"),
        (ROWS, Object("rows", [[1, 2]] * 2), [[1, 2]] * 2),
        (ROWS, Object("auto", [1, 2]), [[1, 2]]),
        (ROWS, Object("row", [[1, 2]] * 2), [[1, 2]] * 2),
        (ROWS, Object("columns", {"x0": ["1"], "x1": ["2"]}), [[1, 2]]),
    ],
)
def test_what_one_call_may_have_stays_whole(method: Method, payload: Object, expected: Any) -> None:
    assert not parts_of(method, payload)
    (tensor,) = bound(method, payload).values()  # type: ignore[union-attr]
    assert tensor.array().tolist() == (expected.encode() if method is TEXT else expected)


def test_whole_tensors_are_not_divided() -> None:
    """Whoever names them asks for one run."""
    assert not parts_of(ROWS, Tensors(x=Tensor.of(np.ones((3, 2), np.float32))))
    for payload in (Object("row", [[1, 2]] * 3), Object("auto", {"x": [[1, 2]] * 3})):
        assert not parts_of(ROWS, payload)
        with pytest.raises(InvalidInput, match="3 rows in one request"):
            ROWS.check(bound(ROWS, payload))  # type: ignore[arg-type]


@pytest.mark.parametrize("schema", ["rows", "auto"])
@pytest.mark.parametrize("is_long", [False, True])
def test_inputs_that_cannot_share_a_call_are_divided(is_long: bool, schema: Any) -> None:
    payload: Any = Object(schema, ["a", "b"])
    parts = parts_of(TEXT, bound(TEXT, payload) if is_long else payload)
    assert parts == [Object("row", "a"), Object("row", "b")]
    assert not parts_of(TEXT, Object("row", ["a", "b"]))
    assert not parts_of(NUMBERS, Object("auto", [1, 2]))


def test_long_inputs_are_bound_before_they_wait() -> None:
    value = loads_long(orjson.dumps([[1.5] * 80_000, [2.5]]), 8)
    payload: Any = bound(NUMBERS, Object("rows", value))
    long, short = payload.value
    assert long["x"].shape == (80_000,)
    assert short == Object("row", [2.5])


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("most", [1, 2])
def test_rows_of_several_lengths_share_no_call_but_with_their_like(
    is_long: bool, most: int
) -> None:
    spec = TensorSpec(name="x", dtype=FP32, shape=(-1, -1))
    method = Method(inputs=(spec,), outputs=(), batching="rows", max_rows=most)
    rows = [[1.5] * 80_000, [2.5] * 80_000, [3.5]]
    value = loads_long(orjson.dumps(rows), 8) if is_long else rows
    payload: Any = Object("rows", value)
    parts = parts_of(method, bound(method, payload) if is_long else payload)
    found = [part if isinstance(part, Tensors) else bind(method, part) for part in parts]
    shapes = [(1, 80_000), (1, 80_000), (1, 1)] if most == 1 else [(2, 80_000), (1, 1)]
    assert [part["x"].shape for part in found] == shapes
    if is_long and most == 1:
        assert [type(part) for part in parts] == [Tensors, Tensors, Object]


def test_a_wrong_row_is_told_by_its_place_in_all() -> None:
    table = {"x0": ["1", "1", "x"], "x1": ["2", "2", "2"]}
    with pytest.raises(InvalidInput, match="column 'x0', row 3: 'x' is not a number"):
        parts_of(ROWS, Object("columns", table))


class Model:
    """Keeps the calls that are submitted; refuses what comes after `room`. It is their lease."""

    def __init__(self, room: int = 10) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.target = self
        self.is_idempotent = False
        self._room = room

    def submit(self, request: Request, sink: Any) -> Call:
        if len(self.calls) == self._room:
            raise Overloaded("full")
        self.calls.append(Call(request, sink, NO_CONTEXT, self, 0))  # type: ignore[arg-type]
        return self.calls[-1]

    def cancel(self, call: Call, why: SalverError) -> None:
        if not call.ended:
            self.cancelled.append(call)
            self.answer(call, why)

    def answer(self, call: Call, value: SalverError | np.ndarray[Any, Any]) -> None:
        call.ended = True
        item: Any = value
        if isinstance(value, np.ndarray):
            item = Response(Rows(Tensors(y=Tensor.of(value))), ModelRef("m", "1"), TEXT, ("y",))
        call.sink.push(call, item, True)


class Sink:
    def __init__(self) -> None:
        self.items: list[Any] = []

    def push(self, call: Call, item: Any, final: bool) -> None:
        assert final
        self.items.append(item)


def begun(model: Model, method: Method, payload: Object, max_calls: int = 10) -> tuple[Call, Sink]:
    sink = Sink()
    each = Each(
        method,
        parts_of(method, payload),
        model.submit,
        max_calls,
        is_idempotent=model.is_idempotent,
    )
    call = Call(Request(payload), sink, NO_CONTEXT, each, 0)
    each.submit(call, 0)
    return call, sink


def test_answers_come_as_one_in_the_order_of_their_inputs() -> None:
    model = Model()
    call, sink = begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    assert [each.request.payload.value for each in model.calls] == ["a", "b", "c"]  # type: ignore[union-attr]
    for each in reversed(model.calls):
        assert not sink.items
        model.answer(each, np.array(model.calls.index(each), np.float32))
    (answer,) = sink.items
    assert call.ended
    assert answer.method.batching == "rows"
    assert answer.tensor("y").array().tolist() == [0.0, 1.0, 2.0]


def test_rows_of_several_runs_are_put_together() -> None:
    model = Model()
    _, sink = begun(model, ROWS, Object("rows", [[1, 2]] * 3))
    for rows, each in zip((2, 1), model.calls, strict=True):
        model.answer(each, np.full((rows, 2), rows, np.float32))
    assert sink.items[0].tensor("y").array().tolist() == [[2, 2], [2, 2], [1, 1]]


@pytest.mark.parametrize("is_refused", [False, True])
def test_only_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch, is_refused: bool) -> None:
    monkeypatch.setattr(each_module, "_AT_ONCE", 2)
    model = Model(room=3 if is_refused else 10)
    _, sink = begun(model, TEXT, Object("rows", ["a", "b", "c", "d"]))
    assert len(model.calls) == 2
    model.answer(model.calls[1], np.array(1, np.float32))
    assert len(model.calls) == 3
    model.answer(model.calls[0], np.array(0, np.float32))
    if is_refused:
        assert [item.message for item in sink.items] == [
            "full (a part of this request has run before)"
        ]
        assert model.cancelled == [model.calls[2]]
        return
    for number in (3, 2):
        model.answer(model.calls[number], np.array(number, np.float32))
    assert sink.items[0].tensor("y").array().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_first_error_ends_all() -> None:
    model = Model()
    _, sink = begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    model.answer(model.calls[1], ModelFailed("bad text"))
    assert [item.message for item in sink.items] == ["bad text"]
    assert model.cancelled == [model.calls[0], model.calls[2]]


@pytest.mark.parametrize(("is_idempotent", "kind"), [(True, Unavailable), (False, Undeliverable)])
def test_what_has_run_in_part_is_not_told_to_try_again(
    is_idempotent: bool, kind: type[SalverError]
) -> None:
    model = Model()
    model.is_idempotent = is_idempotent
    for has_run in (False, True):
        _, sink = begun(model, TEXT, Object("rows", ["a", "b"]))
        first, second = model.calls[-2:]
        if has_run:
            model.answer(first, np.array(1, np.float32))
        model.answer(second, Unavailable("unloaded"))
        assert [type(item) for item in sink.items] == [kind if has_run else Unavailable]


def test_who_cancels_one_cancels_all() -> None:
    model = Model()
    call, sink = begun(model, TEXT, Object("rows", ["a", "b"]))
    call.lease.target.cancel(call, Cancelled("gone"))
    call.lease.target.cancel(call, Cancelled("gone"))
    assert [item.message for item in sink.items] == ["gone"]
    assert model.cancelled == model.calls


def test_what_is_refused_half_way_leaves_nothing() -> None:
    model = Model(room=2)
    with pytest.raises(Overloaded):
        begun(model, TEXT, Object("rows", ["a", "b", "c"]))
    assert model.cancelled == model.calls
    model = Model()
    with pytest.raises(InvalidInput, match="asks for 3 runs, but only 2 calls may wait"):
        begun(model, TEXT, Object("rows", ["a", "b", "c"]), max_calls=2)
    assert not model.calls


def test_answers_of_different_shapes_are_not_one() -> None:
    model = Model()
    _, sink = begun(model, TEXT, Object("rows", ["a", "b"]))
    for length, each in enumerate(model.calls):
        model.answer(each, np.ones(length, np.float32))
    (error,) = sink.items
    assert isinstance(error, Unsupported)
    assert "differ in the shape of 'y'" in error.message


PAIRS = """
import numpy as np
import salver


@salver.model(max_batch=2)
class Pairs:
    def predict(
        self, x: salver.Array["float32", "B", 2]
    ) -> tuple[salver.Array["float32", "B"], salver.Array["int64", "B"]]:
        assert len(x) <= 2
        return x.sum(axis=1), np.full(len(x), len(x))
"""


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that takes two rows at once."""
    path = tmp_path_factory.mktemp("models") / "pairs.py"
    path.write_text(PAIRS)
    return serve(path, "--access-log", "off")


def as_json(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda rows: {"json": {key: rows.tolist()} if key else rows.tolist()}


def as_csv(names: str) -> Callable[[Any], dict[str, Any]]:
    def encoded(rows: Any) -> dict[str, Any]:
        lines = "".join(f"{a},{b}\n" for a, b in rows.tolist())
        return {"content": names + lines, "headers": {"Content-Type": "text/csv"}}

    return encoded


@pytest.mark.parametrize("num_rows", [5, 7001])
@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("/predict/pairs", as_json("inputs")),
        ("/predict/pairs", as_json("")),
        ("/predict/pairs", as_csv("")),
        ("/predict/pairs", as_csv("a,b\n")),
        ("/v1/models/pairs:predict", as_json("instances")),
    ],
)
def test_lists_and_tables_of_any_length_are_answered(
    server: Any, path: str, encoded: Any, num_rows: int
) -> None:
    rows = np.arange(2.0 * num_rows).reshape(-1, 2)
    answer = httpx.post(server.url + path, **encoded(rows)).json()
    sums, sizes = zip(*(row.values() for row in answer["predictions"]), strict=True)
    assert list(sums) == rows.sum(axis=1).tolist()
    assert set(sizes) <= {1, 2}
