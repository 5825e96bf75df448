from __future__ import annotations

import io
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from salver.config import Batching, ModelConfig
from salver.errors import Cancelled, InvalidInput, LoadFailed, ModelFailed, TrustRequired
from salver.interfaces import LoadSpec
from salver.runtimes.python import PythonModel, PythonRuntime
from salver.types import (
    BYTES,
    FP32,
    FP64,
    INT64,
    NO_CONTEXT,
    CallContext,
    ModelRef,
    Request,
    Rows,
    Tensor,
    Tensors,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = """
from __future__ import annotations
import asyncio, dataclasses
from typing import *
import numpy as np
import salver
from salver import Array, InvalidInput
"""


class Loader:
    """Writes `model.py` and loads it; closes what it loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.loaded: list[PythonModel] = []

    def __call__(self, code: str, **options: Any) -> PythonModel:
        (self.folder / "model.py").write_text(HEAD + textwrap.dedent(code))
        options.setdefault("trusted", True)
        options["config"] = ModelConfig(**options.pop("config", {}))
        model = PythonRuntime().load(
            LoadSpec(path=self.folder, ref=ModelRef("m"), warn=self.warnings.append, **options)
        )
        self.loaded.append(model)
        return model


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loader]:
    loader = Loader(tmp_path)
    yield loader
    for model in loader.loaded:
        model.close()


def work(
    model: PythonModel, inputs: dict[str, Any], offsets: tuple[int, ...] = (0, 1), **more: Any
) -> Work:
    method = more.pop("method", model.signature.default)
    outputs = model.signature.methods[method].default_outputs()
    parameters = more.pop("parameters", [{}] * (len(offsets) - 1))
    return Work(method, inputs, list(offsets), outputs, parameters, **more)


def refuse(index: int, item: Tensors) -> None:
    raise AssertionError("nothing should be streamed")


def run(model: PythonModel, inputs: dict[str, Any], *offsets: int, **more: Any) -> Any:
    return model.run(work(model, inputs, offsets or (0, 1), **more), refuse)


def one(value: Any) -> np.ndarray:
    out = np.empty((), np.object_)
    out[()] = value
    return out


ROWS = """
class Double:
    def predict(self, x: Array["float32", "B", 2]) -> Array["float32", "B", 2]:
        return x * 2
"""


def test_rows_are_run_together(load: Loader) -> None:
    model = load(ROWS)
    (name, method), *others = model.signature.methods.items()
    assert (name, method.batching, others) == ("predict", "rows", [])
    assert [(s.name, s.dtype, s.shape) for s in method.inputs] == [("x", FP32, (-1, 2))]
    result = run(model, {"x": np.ones((3, 2), np.float32)}, 0, 1, 3)
    assert isinstance(result, Rows)
    assert result.tensors["output"].array().tolist() == [[2, 2]] * 3


def test_float64_becomes_the_declared_float32(load: Loader) -> None:
    model = load(ROWS.replace("x * 2", "x.astype(np.float64)"))
    result = run(model, {"x": np.ones((1, 2), np.float32)})
    assert result.tensors["output"].array().dtype == np.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x[:, :1]", r"predict: output 'output': expected shape \[-1, 2\], got \[2, 1\]"),
        ("x[:1]", "predict: output 'output': expected 2 rows, got 1"),
        ("np.array([['a', 'b']] * 2)", "predict: output 'output': expected FP32, got <U1"),
        ("[[1.0], [2.0, 3.0]]", "predict: output 'output': list is no array"),
    ],
)
def test_a_wrong_output_says_what_was_expected(load: Loader, given: str, message: str) -> None:
    model = load(ROWS.replace("x * 2", given))
    with pytest.raises(ModelFailed, match=message):
        run(model, {"x": np.ones((2, 2), np.float32)}, 0, 2)


def test_rows_of_text_and_bfloat16(load: Loader) -> None:
    model = load("""
        def predict(text: Array["str", "B"], w: Array["bfloat16", "B"]) -> Array["bfloat16", "B"]:
            assert w.dtype == np.float32
            return np.array([len(t) for t in text], np.float32) * w
    """)
    text = np.array([b"a", "bcd"], np.object_)
    result = run(model, {"text": text, "w": np.array([0x3F80, 0x4000], np.uint16)}, 0, 2)
    assert result.tensors["output"].array().tolist() == [0x3F80, 0x40C0]  # 1 and 6


ITEMS = """
class Lengths:
    def predict(self, texts: list[str]) -> list[int]:
        return [InvalidInput("empty") if not t else "?" if t == "?" else len(t) for t in texts]
"""


def test_items_come_as_a_list_and_fail_one_by_one(load: Loader) -> None:
    model = load(ITEMS)
    method = model.signature.methods["predict"]
    assert method.batching == "items"
    assert (method.inputs[0].dtype, method.inputs[0].shape) == (BYTES, ())
    assert method.inputs[0].content == "text"
    texts = [one(b"one"), one("eleven"), one(b""), one(b"?")]
    first, second, third, fourth = run(model, {"texts": texts}, 0, 1, 2, 3, 4)
    assert first["output"].array().tolist() == 3
    assert second["output"].array().tolist() == 6
    assert isinstance(third, InvalidInput)
    assert isinstance(fourth, ModelFailed)
    assert "expected one INT64, got str" in fourth.message


def test_a_wrong_number_of_items_is_named(load: Loader) -> None:
    model = load("class A:\n def predict(self, x: list[int]) -> list[int]: return x[:1]")
    with pytest.raises(ModelFailed, match="expected a list of 2 items, got 1"):
        run(model, {"x": [np.array(1), np.array(2)]}, 0, 1, 2)


def test_one_call_at_a_time_with_scalars_and_defaults(load: Loader) -> None:
    model = load("""
        class Scale:
            def predict(self, x: float, by: int | None = None, up: bool = True) -> float:
                return x * (by or 10) if up else x
    """)
    method = model.signature.methods["predict"]
    assert method.batching == "single"
    assert [s.optional for s in method.inputs] == [False, True, True]
    assert [s.dtype for s in method.inputs][:2] == [FP64, INT64]
    (outputs,) = run(model, {"x": np.array(1.5)})
    assert outputs["output"].array().tolist() == 15.0
    (outputs,) = run(model, {"x": np.array(1.5), "by": np.array(2)})
    assert outputs["output"].array().tolist() == 3.0


def test_json_is_checked_and_arrays_in_it_become_lists(load: Loader) -> None:
    model = load("""
        @dataclasses.dataclass
        class Point:
            x: int
        def predict(p: Point, more: dict = {}) -> dict[str, Any]:
            return {"x": p.x, "a": np.arange(2), **more}
    """)
    assert [s.content for s in model.signature.methods["predict"].inputs] == ["json", "json"]
    (outputs,) = run(model, {"p": one(b'{"x": 3}'), "more": one('{"y": null}')})
    assert msgspec.json.decode(outputs["output"].array().item()) == {"x": 3, "a": [0, 1], "y": None}
    with pytest.raises(InvalidInput, match=r"input 'p': Expected `int`, got `str` - at `\$.x`"):
        run(model, {"p": one(b'{"x": "3"}')})
    with pytest.raises(InvalidInput, match="input 'p'"):
        run(model, {"p": one(b"\xff")})


def test_text_that_is_not_utf8_is_the_clients_error(load: Loader) -> None:
    model = load("def predict(x: str) -> bytes: return x.encode()")
    (outputs,) = run(model, {"x": one("hé")})
    assert outputs["output"].array().tolist() == "hé".encode()
    with pytest.raises(InvalidInput, match="input 'x': a value is not UTF-8 text"):
        run(model, {"x": one(b"\xff")})


def test_images_come_in_rgb_and_leave_as_png(load: Loader) -> None:
    model = load("""
        def predict(photo: salver.Image) -> tuple[salver.Image, Array["uint8", "h", "w", 3]]:
            return photo.rotate(90), np.asarray(photo)
    """)
    assert model.signature.methods["predict"].inputs[0].content == "image"
    file = io.BytesIO()
    Image.new("L", (3, 2), 7).save(file, "GIF")
    (outputs,) = run(model, {"photo": one(file.getvalue())})
    assert Image.open(io.BytesIO(outputs["output_0"].array().item())).format == "PNG"
    assert outputs["output_1"].shape == (2, 3, 3)
    with pytest.raises(InvalidInput, match="input 'photo': not an image"):
        run(model, {"photo": one(b"GIF89a")})


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("@dataclasses.dataclass\nclass Out:", "Out(label=1, score=0.5)"),
        ("class Out(TypedDict):", "{'label': 1, 'score': 0.5}"),
        ("class Out(NamedTuple):", "Out(1, 0.5)"),
    ],
)
def test_several_named_outputs(load: Loader, kind: str, given: str) -> None:
    model = load(f"{kind}\n label: int\n score: float\ndef predict(x: str) -> Out: return {given}")
    (outputs,) = run(model, {"x": one(b"")})
    assert {name: t.array().tolist() for name, t in outputs.items()} == {
        "label": 1,
        "score": 0.5,
    }


def test_missing_outputs_are_named(load: Loader) -> None:
    model = load("def predict(x: str) -> tuple[int, int]: return 1, 2, 3")
    with pytest.raises(ModelFailed, match="the outputs output_0, output_1, got 3 values"):
        run(model, {"x": one(b"")})


def test_only_wanted_outputs_are_encoded(load: Loader) -> None:
    model = load("def predict(x: str) -> tuple[int, int]: return 1, 'not an int'")
    wanted = work(model, {"x": one(b"")})
    wanted.outputs = ("output_0",)
    assert list(model.run(wanted, refuse)[0]) == ["output_0"]  # type: ignore[index, arg-type]


STREAMS = """
class Echo:
    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word
    async def slowly(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            await asyncio.sleep(0)
            yield word
"""


@pytest.mark.parametrize("method", ["predict", "slowly"])
def test_generators_stream(load: Loader, method: str) -> None:
    model = load(STREAMS)
    assert model.signature.methods[method].streams
    got: list[Any] = []
    result = model.run(
        work(model, {"text": one(b"a b")}, method=method),
        lambda index, item: got.append((index, item["output"].array().item())),
    )
    assert got == [(0, "a"), (0, "b")]
    assert result == [None]


@pytest.mark.parametrize("method", ["predict", "slowly"])
def test_a_cancelled_stream_ends_before_its_next_item(load: Loader, method: str) -> None:
    model = load(STREAMS)
    todo = work(model, {"text": one(b"a b c")}, method=method)
    got: list[Any] = []

    def emit(index: int, item: Tensors) -> None:
        got.append(item)
        model.cancel(todo, 0)

    with pytest.raises(Cancelled):
        model.run(todo, emit)
    assert len(got) == 1


def test_a_waiting_coroutine_can_be_cancelled(load: Loader) -> None:
    model = load("""
        started = __import__("threading").Event()
        cleaned = []
        class Waits:
            async def predict(self, x: int) -> int:
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaned.append(x)
    """)
    (name,) = own_modules()
    module = sys.modules[name]
    todo = work(model, {"x": np.array(5)})
    failed: list[Exception] = []

    def serve() -> None:
        try:
            model.run(todo, refuse)
        except Cancelled as error:
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    assert module.started.wait(10)
    model.cancel(todo, 0)
    thread.join(10)
    assert len(failed) == 1
    assert module.cleaned == [5]


def test_async_methods_take_items(load: Loader) -> None:
    model = load("""
        class Adds:
            async def predict(self, xs: list[int]) -> list[int]:
                return await asyncio.gather(*map(self.add, xs))
            async def add(self, x):
                return x + 1
    """)
    results = run(model, {"xs": [np.array(1), np.array(2)]}, 0, 1, 2)
    assert [r["output"].array().tolist() for r in results] == [2, 3]


def test_methods_and_which_are_served(load: Loader) -> None:
    model = load(
        """
        class Base:
            def inherited(self, x: int) -> int: return x
        class Many(Base):
            def before(self, x: int) -> int:
                "Says one thing.

                Not this."
            def predict(self, x: int) -> int: return x
            def helper(self, x: np.ndarray) -> np.ndarray: return x
            def unhinted(self, x): return x
            def _private(self, x: int) -> int: return x
            def close(self) -> int: return 0
    """.replace('"Says', '"""Says').replace('this."', 'this."""')
    )
    assert list(model.signature.methods) == ["predict", "inherited", "before"]
    assert model.signature.methods["before"].doc == "Says one thing."
    (warning,) = load.warnings
    assert warning.startswith("model.py: helper is not served: ndarray cannot be served")


def test_call_is_served_as_predict(load: Loader) -> None:
    model = load("class A:\n def __call__(self, x: int) -> int: return x + 1")
    (outputs,) = run(model, {"x": np.array(1)})
    assert model.signature.default == "predict"
    assert outputs["output"].array().tolist() == 2


def test_computed_options_count_once_loaded_but_for_those_needed_before(load: Loader) -> None:
    model = load("""
        LABELS = ["a", "b"]
        @salver.model(labels=LABELS, max_batch=2 * 4, name="-".join(LABELS))
        class M:
            def predict(self, x: Array["float32", "B", 3]) -> Array["float32", "B", 2]: ...
    """)
    assert model.traits.max_batch == 8
    assert model.signature.methods["predict"].outputs[0].labels == ("a", "b")
    (warning,) = load.warnings
    assert "name is no plain literal and is not read" in warning


def test_the_decorator_is_overruled_by_the_configuration(load: Loader) -> None:
    code = """
        @salver.model(labels=["a", "b"], max_batch=8, idempotent=True, device="cuda:7",
                      thread_safe=True)
        class M:
            def __init__(self, device: str, threads: int, scale: float = 1.0):
                self.seen = (device, threads, scale)
            def predict(self, x: Array["float32", "B", 3]) -> Array["float32", "B", 2]: ...
            def told(self, x: int) -> list: return self.seen
    """
    model = load(code)
    assert model.traits.max_batch == 8
    assert (model.traits.idempotent, model.traits.thread_safe) == (True, True)
    (spec,) = model.signature.methods["predict"].outputs
    assert (spec.role, spec.labels) == ("probabilities", ("a", "b"))
    config = {
        "labels": ("x", "y"),
        "idempotent": False,
        "device": "cpu",
        "options": {"scale": 2.0},
        "batching": Batching(max_size=32),
    }
    model = load(code, config=config, threads=3)
    assert model.traits.max_batch == 32
    assert model.signature.methods["predict"].outputs[0].labels == ("x", "y")
    assert not model.traits.idempotent
    (outputs,) = run(model, {"x": np.array(0)}, method="told")
    assert outputs["output"].array().item() == b'["cpu",3,2.0]'


def test_python_is_not_run_again_unless_it_says_so(load: Loader) -> None:
    traits = load(ROWS).traits
    assert (traits.holds_gil, traits.idempotent, traits.thread_safe) == (True, False, False)


def test_labels_that_fit_nothing_are_warned_of(load: Loader) -> None:
    load(ROWS, config={"labels": ("a", "b", "c")})
    assert load.warnings == ["model.py: no output fits the 3 labels"]


class Answers:
    """A caller that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[ModelRef, Request, CallContext, int]] = []

    def __call__(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        self.asked.append((ref, request, context, depth))
        return Tensors(y=Tensor.of(np.array([7], np.int64)))


@pytest.mark.parametrize("is_async", [False, True])
def test_other_models_are_called_with_the_callers_deadline(load: Loader, is_async: bool) -> None:
    answers = Answers()
    model = load(
        f"""
        class Uses:
            def __init__(self):
                self.iris = salver.use("iris", version="2")
            {"async " if is_async else ""}def predict(self, x: int) -> int:
                return self.iris.predict(np.array(x)) + salver.context().parameters["add"]
        """,
        caller=answers,
    )
    context = CallContext(deadline=5, priority=3)
    (outputs,) = run(
        model,
        {"x": np.array(1)},
        deadline=9,
        context=context,
        depth=2,
        parameters=[{"add": 10}],
    )
    assert outputs["output"].array().tolist() == 17
    ((ref, request, given, depth),) = answers.asked
    assert (str(ref), depth) == ("iris version 2", 3)
    assert given == CallContext(deadline=9, priority=3)
    assert isinstance(request.payload, Tensors)
    assert request.payload[""].array().tolist() == 1


def test_each_load_has_its_own_copy_of_the_files_beside_it(load: Loader) -> None:
    code = """
        import beside
        class A:
            def predict(self, x: int) -> int: return beside.VALUE
    """
    (load.folder / "beside.py").write_text("VALUE = 1")
    first = load(code)
    (load.folder / "beside.py").write_text("VALUE = 22")
    second = load(code)
    results = [
        run(model, {"x": np.array(0)})[0]["output"].array().item() for model in (first, second)
    ]
    assert results == [1, 22]
    assert "beside" not in sys.modules
    assert str(load.folder) not in sys.path


def test_close_calls_the_authors_close_and_forgets_the_module(load: Loader) -> None:
    model = load("""
        class A:
            def predict(self, x: int) -> int: return x
            async def close(self): closed.append(1)
        closed = []
    """)
    (module,) = own_modules()
    closed = sys.modules[module].closed
    load.loaded.remove(model)
    model.close()
    assert closed == [1]
    assert own_modules() == []


def own_modules() -> list[str]:
    return [name for name in sys.modules if name.startswith("salver_model_")]


def test_code_needs_trust(load: Loader) -> None:
    with pytest.raises(TrustRequired, match=r"model\.py is Python code.*--trust"):
        load("raise AssertionError('was run')", trusted=False)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n1 / 0\n", "^model.py:9: ZeroDivisionError: division by zero$"),
        ("class A(\n", r"^model.py:8: '\(' was never closed$"),
        ("import helper\n", "^helper.py:2: SyntaxError: "),
        ("import sys; sys.exit('no')\n", "^model.py:8: SystemExit: no$"),
        ("class A:\n def __init__(self): open('w.npz')\n", r"^model.py:9: .*Path\(__file__\)"),
        ("class A:\n def __init__(self): int('x')\n", "^model.py:9: ValueError: invalid literal"),
        ("class A:\n def __init__(self, path): ...\n", "__init__ needs 'path'; give it under opt"),
        ("class A: ...\nsalver.use('b')\n", "^model.py:9: Unavailable: salver.use"),
        ("X = Array[4, 'B']\n", "^model.py:8: TypeError: Array: 4 is no dtype; write it first"),
    ],
)
def test_errors_at_load_point_into_the_authors_file(load: Loader, code: str, message: str) -> None:
    (load.folder / "helper.py").write_text("\nx = = 1")
    (load.folder / "w.npz").touch()
    with pytest.raises(LoadFailed, match=message) as caught:
        load(code, config={"class_name": "A"} if "class A(\n" not in code else {})
    assert str(load.folder) not in caught.value.message
    assert own_modules() == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("predict(self, x) -> int", "predict: parameter 'x' has no type hint"),
        ("predict(self, x: int)", "predict: the return type has no hint"),
        ("predict(self) -> int", "predict: it takes no inputs"),
        ("predict(self, *x: int) -> int", r"predict: \*x.* cannot be served; name every input"),
        ("predict(self, x: Nowhere) -> int", "predict: a type hint names 'Nowhere'"),
        ("predict(self, x: Array['B', 4]) -> int", "predict: a type hint is wrong: Array: 'B' is"),
        ("predict(self, x: salver.Arry[4]) -> int", "wrong: module 'salver' has no attr"),
        ("predict(self, x: np.ndarray) -> int", "predict: ndarray cannot be served; write salver"),
        ("predict(self, x: list[int]) -> int", r"it must return list\[...\]"),
        ("predict(self, x: list[int], y: int) -> list[int]", r"either every input is list"),
        ("predict(self, x: Array['f4', 'B'], y: int) -> int", r"all need \"B\" first"),
        ("predict(self, x: Array['f4', 'B']) -> int", r"every output needs \"B\" first"),
        ("predict(self, x: list[int]) -> Iterator[int]", "streams takes one call at a time"),
    ],
)
def test_hints_that_cannot_be_served_are_explained(load: Loader, method: str, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        load(f"class A:\n def {method}: ...")


def test_unknown_options_get_a_hint(load: Loader) -> None:
    code = "class A:\n def __init__(self, scale=1): ...\n def predict(self, x: int) -> int: ..."
    with pytest.raises(LoadFailed, match=r"__init__ takes no 'scael'.*Did you mean 'scale'"):
        load(code, config={"options": {"scael": 2}})


def probe(folder: Path, code: str, **config: Any) -> Any:
    (folder / "model.py").write_text(code)
    return PythonRuntime().probe(folder, ModelConfig(**config))


def test_a_probe_runs_nothing(tmp_path: Path) -> None:
    found = probe(tmp_path, "raise AssertionError\nclass A:\n def predict(self, x): ...")
    assert (found.runtime, found.file, found.problem) == ("python", "model.py", "")
    assert "Python code" in found.trust


PREDICT = "def predict(self, x: int) -> int: ..."


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (f"class A:\n {PREDICT}\nclass B:\n {PREDICT}", "several models: A, B"),
        ("class A(", "model.py:1: '(' was never closed"),
    ],
)
def test_a_probe_says_why_a_load_would_fail(tmp_path: Path, code: str, problem: str) -> None:
    assert problem in probe(tmp_path, code).problem


@pytest.mark.parametrize(
    ("code", "config"),
    [
        ("import os", {}),
        ("class Net:\n def forward(self, x): ...", {}),
        ("class Net:\n def forward(self, x): ...", {"class_name": "model:Net"}),
        ("class Transform:\n def __call__(self, x): ...", {}),
    ],
)
def test_code_that_is_no_model_is_left_to_others(
    tmp_path: Path, code: str, config: dict[str, Any]
) -> None:
    assert probe(tmp_path, code, **config) is None


def test_the_decorated_class_is_meant(load: Loader) -> None:
    model = load("""
        class A:
            def predict(self, x: int) -> int: return 1
        @salver.model
        class B:
            def predict(self, x: int) -> int: return 2
    """)
    assert run(model, {"x": np.array(0)})[0]["output"].array().tolist() == 2


def test_the_configured_class_of_a_configured_module(load: Loader) -> None:
    (load.folder / "other.py").write_text(f"class B:\n {PREDICT[:-3]}return 3")
    model = load("", config={"class_name": "other:B"})
    assert run(model, {"x": np.array(0)})[0]["output"].array().tolist() == 3
