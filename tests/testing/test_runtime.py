"""A small runtime passes, and each way to break the contract of runtimes is caught."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from salver.errors import InvalidInput, LoadFailed, TrustRequired
from salver.interfaces import Probe, Traits
from salver.signature import Method, Signature, TensorSpec
from salver.testing import check_runtime
from salver.types import BYTES, FP32, INT64, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import LoadSpec
    from salver.types import Work

X = TensorSpec(name="x", dtype=FP32, shape=(-1, 2))
Y = TensorSpec(name="y", dtype=FP32, shape=(-1, 2))
ROWS = [[1, 2], [3, 4], [5, 6]]
REFUSED = [[-1, 0]]


def signature(*outputs: TensorSpec, batching: Any = "rows", x: TensorSpec = X) -> Signature:
    return Signature({"predict": Method(inputs=(x,), outputs=outputs or (Y,), batching=batching)})


def rows(values: Any) -> Rows:
    return Rows(Tensors({"y": Tensor.of(values)}))


class Doubler:
    """Doubles, and refuses negative numbers."""

    signature = signature()
    traits = Traits(thread_safe=True)

    def __init__(self) -> None:
        self.is_open = True

    def run(self, work: Work, emit: Any) -> Any:
        x = work.inputs["x"]
        if (x < 0).any():
            raise InvalidInput("x must not be negative")
        return self.double(x, work, emit)

    def double(self, x: Any, work: Work, emit: Any) -> Any:
        return rows(x * 2)

    def cancel(self, work: Work, index: int) -> None:
        pass

    def close(self) -> None:
        self.is_open = False


class Twos:
    """Loads files that say `2` on every line."""

    name = "twos"
    model: type[Doubler] = Doubler

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        if path.suffix != ".twos":
            return None
        size = path.stat().st_size
        return Probe(runtime=self.name, file=path.name, size_bytes=size, trust="it is code")

    def load(self, spec: LoadSpec) -> Doubler:
        if not spec.trusted:
            raise TrustRequired("it is code")
        if spec.device != "cpu":
            raise LoadFailed("there is only a processor")
        if len(spec.path.read_bytes()) % 2:
            raise LoadFailed("a line is cut off")
        return self.model()


class ProbesBadly(Twos):
    """Changes fields of a right probe."""

    changes: dict[str, Any] = {}  # noqa: RUF012

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        found = super().probe(path, config)
        return found and msgspec.structs.replace(found, **self.changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.twos"
    path.write_bytes(b"2\n")
    return path


def check(runtime: Twos, path: Path) -> None:
    check_runtime(runtime, path, rows=ROWS, failing=REFUSED)


def test_a_good_runtime_passes(path: Path) -> None:
    check(Twos(), path)


class Opens(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        pickle.loads(pickle.dumps(InvalidInput))
        return super().probe(path, config)


class Executes(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        if path.suffix == ".twos":
            exec(compile(path.read_text(), path, "exec"))
        return super().probe(path, config)


class Writes(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        if path.suffix == ".twos":
            path.write_bytes(b"2\n2\n")
        return super().probe(path, config)


class Counts(Twos):
    count = 0

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        self.count += 1
        found = super().probe(path, config)
        return found and msgspec.structs.replace(found, detail=str(self.count))


class TakesAll(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        return Probe(runtime=self.name, file=path.name, size_bytes=1000)


class KnowsNothing(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        return None


class RaisesOnFolders(Twos):
    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        path.read_bytes()
        return super().probe(path, config)


class NeedsNoTrust(Twos):
    def load(self, spec: LoadSpec) -> Doubler:
        spec.trusted = True
        return super().load(spec)


class OpensWithoutTrust(Twos):
    def load(self, spec: LoadSpec) -> Doubler:
        pickle.loads(pickle.dumps(InvalidInput))
        return super().load(spec)


class TakesAnyDevice(Twos):
    def load(self, spec: LoadSpec) -> Doubler:
        spec.device = "cpu"
        return super().load(spec)


class LoadsHalves(Twos):
    def load(self, spec: LoadSpec) -> Doubler:
        if len(spec.path.read_bytes()) % 2:
            raise ValueError("odd")
        return super().load(spec)


class Shares(Twos):
    shared = Doubler()

    def load(self, spec: LoadSpec) -> Doubler:
        super().load(spec)
        self.shared.double = lambda x, work, emit: self.shared.is_open and rows(x * 2)  # type: ignore[method-assign]
        return self.shared


def probing(**changes: Any) -> Twos:
    return type("Probing", (ProbesBadly,), {"changes": changes})()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (KnowsNothing(), "probe gives a Probe of its files; got None"),
        (RaisesOnFolders(), "probe raises nothing.* it raised IsADirectoryError"),
        (Opens(), "probe runs no code from the file; it unpickled salver.errors.InvalidInput"),
        (Executes(), "probe runs no code from the file; it executed model.twos"),
        (Writes(), "probe writes nothing"),
        (Counts(), "stateless; a second probe"),
        (TakesAll(), "probe gives None for what it cannot load; it took a folder"),
        (probing(runtime="other"), "Probe.runtime is the name of the runtime; 'other'"),
        (probing(file="other"), "Probe.file is the name of a file.*'other'"),
        (probing(size_bytes=1), "Probe.size_bytes counts the whole model; 1 is less than the 2"),
        (probing(problem="too old"), "Probe.problem is empty.*; too old"),
        (probing(trust=""), "trust only where probe says so; it raised TrustRequired"),
        (probing(signature=signature(X)), "probe tells the signature that the model will have"),
        (NeedsNoTrust(), "raises TrustRequired.*; it loaded the file"),
        (OpensWithoutTrust(), "load runs no code without trust; it unpickled"),
        (TakesAnyDevice(), "load never changes the device silently"),
        (LoadsHalves(), "load raises LoadFailed for half of a file; it raised ValueError: odd"),
        (Shares(), "close leaves other loads of the file alone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Twos) else "",
)
def test_a_broken_runtime_is_caught(path: Path, runtime: Twos, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(runtime, path)


def with_spec(**changes: Any) -> Signature:
    return signature(msgspec.structs.replace(Y, **changes))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Signature({}), "at least one method"),
        (Signature({"": signature().methods["predict"]}), "A method has a name"),
        (signature(Y, Y), r"have names that differ; method 'predict': \['y', 'y'\]"),
        (with_spec(dtype=type(FP32)("FP32", np.float32, 4)), "dtype is one of salver.types"),
        (with_spec(shape=[-1, 2]), "shape is a tuple"),
        (with_spec(shape=(-2, 2)), "shape is a tuple"),
        (with_spec(shape=(1, 2)), "Dimension 0 of every input and output counts rows"),
        (with_spec(content="text"), "content says what BYTES hold"),
        (with_spec(on_request=True), "gives an output without being asked"),
        (with_spec(role="probabilities", labels=("a",)), "labels name the classes"),
        (
            signature(*(msgspec.structs.replace(Y, name=name, role="label") for name in "ab")),
            "At most one output has the role 'label'",
        ),
    ],
)
def test_a_broken_signature_is_caught(path: Path, found: Signature, message: str) -> None:
    runtime = Twos()
    runtime.model = type("Model", (Doubler,), {"signature": found})
    with pytest.raises(AssertionError, match=message):
        check(runtime, path)


class Stateful(Doubler):
    """Remembers in `seen` what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []


class DependsOnTheBatch(Doubler):
    def double(self, x: Any, work: Work, emit: Any) -> Any:
        return rows(x * 2 + len(x))


class DependsOnTheCalls(Doubler):
    def double(self, x: Any, work: Work, emit: Any) -> Any:
        return rows(x * 2 + np.float32(len(x) > work.num_calls))


class WorksInPlace(Doubler):
    def double(self, x: Any, work: Work, emit: Any) -> Any:
        x *= 2
        return rows(x)


class WritesBehindTheBack(Doubler):
    def double(self, x: Any, work: Work, emit: Any) -> Any:
        result = x * 2
        x.flags.writeable = True
        x[:] = 0
        return rows(result)


class IgnoresOutputs(Doubler):
    signature = signature(Y, msgspec.structs.replace(Y, name="z", on_request=True))


class Breaks(Stateful):
    def run(self, work: Work, emit: Any) -> Any:
        if self.seen:
            return rows(work.inputs["x"])
        try:
            return super().run(work, emit)
        except Exception:
            self.seen.append(work)
            raise


class Hides(Doubler):
    def run(self, work: Work, emit: Any) -> Any:
        return self.double(work.inputs["x"], work, emit)


class CancelRaises(Doubler):
    def cancel(self, work: Work, index: int) -> None:
        raise KeyError(index)


class CancelStays(Stateful):
    def cancel(self, work: Work, index: int) -> None:
        self.seen.append(work)

    def double(self, x: Any, work: Work, emit: Any) -> Any:
        return rows(x * 2 * (not self.seen))


class CancelConfuses(Stateful):
    def cancel(self, work: Work, index: int) -> None:
        self.seen.append(id(work))

    def double(self, x: Any, work: Work, emit: Any) -> Any:
        if id(work) in self.seen:
            raise KeyError("lost")
        return rows(x * 2)


class KnowsItsThread(Doubler):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.current_thread()

    def double(self, x: Any, work: Work, emit: Any) -> Any:
        return rows(x * 2 * (threading.current_thread() is self.thread))


class CloseRaises(Doubler):
    def close(self) -> None:
        raise OSError("gone")


class Emits(Doubler):
    def double(self, x: Any, work: Work, emit: Any) -> Any:
        emit(0, rows(x).tensors)
        return rows(x * 2)


def gives(**values: Any) -> type[Doubler]:
    """A model whose outputs are these, made of its input by each function."""

    def double(self: Any, x: Any, work: Work, emit: Any) -> Any:
        made = {name: make(x) for name, make in values.items()}
        return Rows(
            Tensors({n: v if isinstance(v, Tensor) else Tensor.of(v) for n, v in made.items()})
        )

    return type("Gives", (Doubler,), {"double": double})


def gives_items(make: Any, **traits: Any) -> type[Doubler]:
    def double(self: Any, x: Any, work: Work, emit: Any) -> Any:
        return make(x, work)

    return type("Items", (Doubler,), {"double": double})


TEXT = msgspec.structs.replace(Y, dtype=BYTES)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (type("Traitless", (Doubler,), {"traits": None}), "Model.traits are Traits; None"),
        (WorksInPlace, "also if read-only; it raised ValueError"),
        (WritesBehindTheBack, "leaves its inputs as they are"),
        (IgnoresOutputs, "gave no output 'z'"),
        (DependsOnTheBatch, "gets in a batch what it gets alone; output 'y': .* instead of "),
        (DependsOnTheCalls, "Several rows of a call give what each row gives alone"),
        (Breaks, "A run that fails leaves the model usable"),
        (Hides, "gives the error of the call, when it cannot compute"),
        (CancelRaises, "Model.cancel raises nothing"),
        (CancelStays, "Model.cancel concerns the present run only"),
        (CancelConfuses, "A cancelled run ends as usual or raises a SalverError; it raised KeyErr"),
        (KnowsItsThread, "Traits.thread_safe means"),
        (CloseRaises, "Model.close .* raises nothing; it raised OSError: gone"),
        (Emits, "Only methods that stream emit"),
        (gives(z=lambda x: x), "gave no output 'y'"),
        (gives(y=lambda x: x, z=lambda x: x), "Outputs have the names of the signature; 'z'"),
        (gives(y=lambda x: x.astype(int)), "the data type of the signature; 'y' is .*INT64"),
        (gives(y=lambda x: x[:, :1]), r"the shape of the signature; 'y' is \[1, 1\]"),
        (gives(y=lambda x: Tensor(FP32, x.shape, x.astype(float))), "array is of its shape and"),
        (gives(y=lambda x: np.float32([[1, 2], [3, 4]])), "counts the rows of the inputs"),
        (gives_items(lambda x, work: []), "or one item per call; it raised ModelFailed"),
        (gives_items(lambda x, work: [None]), "gives None for a call that streamed, and only"),
        (gives_items(lambda x, work: [InvalidInput("no")]), "a call failed: no"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_model_is_caught(path: Path, model: type[Doubler], message: str) -> None:
    runtime = Twos()
    runtime.model = model
    with pytest.raises(AssertionError, match=message):
        check(runtime, path)


def test_bytes_hold_bytes_or_text(path: Path) -> None:
    def double(self: Any, x: Any, work: Work, emit: Any) -> Any:
        return Rows(Tensors({"y": Tensor(BYTES, x.shape, x.astype(np.object_))}))

    runtime = Twos()
    runtime.model = type("M", (Doubler,), {"double": double, "signature": signature(TEXT)})
    with pytest.raises(AssertionError, match="BYTES hold bytes or text; 'y' holds float"):
        check(runtime, path)


def test_rows_that_do_not_fit_are_the_authors_mistake(path: Path) -> None:
    with pytest.raises(AssertionError, match="The rows of this check fit the inputs of 'predict'"):
        check_runtime(Twos(), path, rows=[[1, 2, 3]])
    with pytest.raises(AssertionError, match="check_runtime needs rows"):
        check_runtime(Twos(), path, rows=[])


def test_chance_may_be_allowed_for(path: Path) -> None:
    runtime = Twos()
    runtime.model = DependsOnTheBatch
    check_runtime(runtime, path, rows=ROWS, tolerance=None)


class Counter(Doubler):
    """Streams numbers up to its input."""

    signature = Signature(
        {
            "predict": Method(
                inputs=(TensorSpec(name="x", dtype=INT64, shape=()),),
                outputs=(TensorSpec(name="y", dtype=INT64, shape=()),),
                streams=True,
            )
        }
    )

    def double(self, x: Any, work: Work, emit: Any) -> Any:
        for number in range(x):
            emit(self.index(work), Tensors({"y": Tensor.of(np.int64(number))}))
        return [None]

    def index(self, work: Work) -> int:
        return 0


def test_streams_are_checked_too(path: Path) -> None:
    runtime = Twos()
    runtime.model = Counter
    check_runtime(runtime, path, rows=[3, 0], failing=[-1])
    runtime.model = type("Lost", (Counter,), {"index": lambda self, work: 7})
    with pytest.raises(AssertionError, match="only for their calls; 'predict' emitted for call 7"):
        check_runtime(runtime, path, rows=[3])
