"""Runs ONNX models with ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.codecs.onnx_graph import Graph, Value, read_graph
from salver.errors import Cancelled, InvalidInput, LoadFailed, ModelFailed, SalverError
from salver.interfaces import Probe, Traits
from salver.places import without_places
from salver.runtimes.files import find_file, must_exist
from salver.runtimes.onnx_options import (
    available,
    may_fall_back,
    providers,
    refuse,
    session_options,
)
from salver.runtimes.onnx_signature import class_keys, signature_of
from salver.runtimes.texts import texts
from salver.types import BF16, BYTES, DType, Rows, Tensor, Tensors, len_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Results
    from salver.types import Array, Work

_ONNX_BFLOAT16: Final = 16
_MAX_MESSAGE: Final = 300


class OnnxRuntime:
    """Loads `.onnx` files, with weights inside or beside them."""

    name = "onnx"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        """Reads the signature from the file; ONNX Runtime is not even imported."""
        file = find_file(path, config, (".onnx",))
        if file is None:
            return None
        signature, problem, size = None, "", file.stat().st_size
        try:
            graph = read_graph(file)
            size += sum(map(_size, (file.parent / name for name in graph.external)))
            signature = signature_of(graph, config)
        except (ValueError, LoadFailed) as error:
            problem = str(error)
        return Probe(
            runtime=self.name,
            file=file.name,
            size_bytes=size,
            signature=signature,
            problem=problem,
        )

    def load(self, spec: LoadSpec) -> OnnxModel:
        """Creates the session on exactly the providers that were asked for.

        Raises: LoadFailed.
        """
        file = must_exist(find_file(spec.path, spec.config, (".onnx",)), ".onnx file")
        try:
            graph = read_graph(file)
        except ValueError as error:
            raise LoadFailed(f"{file.name}: {error}") from None
        session = _session(file, spec)
        return OnnxModel(session, _inferred(graph, session), spec.config)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _session(file: Path, spec: LoadSpec) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime import InferenceSession

    options, wanted = session_options(spec), providers(spec)
    usable = available(wanted)
    if spec.cancelled():
        raise LoadFailed(f"{spec.ref} is no longer wanted")
    try:
        session = InferenceSession(
            str(file),
            options,
            providers=[name for name, _ in usable],
            provider_options=[given for _, given in usable],
            # Otherwise it prints to stdout and runs on the CPU.
            enable_fallback=0,
        )
    except Exception as error:
        raise LoadFailed(f"{file.name}: {_shorten(error)}") from error
    present = session.get_providers()
    missing = [name for name, _ in wanted if name not in present]
    if missing and not may_fall_back(wanted):
        refuse(missing)
    if missing:
        spec.warn(f"it runs without {' and '.join(missing)}, on {', '.join(present)}")
    return session


def _inferred(graph: Graph, session: Any) -> Graph:
    """The graph with the shapes that ONNX Runtime inferred.

    It gives an empty shape both to scalars and where it knows none; the file tells them apart.
    """

    def values(declared: Sequence[Value], inferred: Sequence[Any]) -> tuple[Value, ...]:
        shapes = {value.name: value.shape for value in declared}
        return tuple(
            Value(v.name, v.type, tuple(v.shape) if v.shape else shapes.get(v.name))
            for v in inferred
        )

    return graph._replace(
        inputs=values(graph.inputs, session.get_inputs()),
        outputs=values(graph.outputs, session.get_outputs()),
    )


class OnnxModel:
    """One session, which all instances share: it runs in many threads at once, without the GIL."""

    def __init__(self, session: Any, graph: Graph, config: ModelConfig) -> None:
        from onnxruntime import RunOptions

        self.signature = signature_of(graph, config)
        method = self.signature.methods[self.signature.default]
        self.traits = Traits(
            holds_gil=False, idempotent=True, thread_safe=True, max_batch=method.max_rows
        )
        classes = class_keys(graph)
        self._run_options = RunOptions
        self._running: dict[int, tuple[Any, set[int]]] = {}
        self._dtypes = {spec.name: spec.dtype for spec in method.outputs}
        self._inputs: dict[str, Callable[[Array, str], Any]] = {
            spec.name: _INPUTS[spec.dtype] for spec in method.inputs if spec.dtype in _INPUTS
        }
        self._outputs: dict[str, Callable[[Any], Array]] = {
            spec.name: _encoded for spec in method.outputs if spec.dtype is BYTES
        }
        self._outputs |= {name: _class_matrix(keys) for name, keys in classes.items()}
        # The method below the public `run`, which repeats checks that the engine has made.
        self._run = getattr(session, "_sess", session).run
        if any(spec.dtype is BF16 for spec in method.outputs):
            if self._outputs or any(spec.dtype is BYTES for spec in method.inputs):
                raise LoadFailed("ONNX Runtime cannot give BF16 outputs in a model with strings")
            self._inputs = {
                spec.name: _bf16_value if spec.dtype is BF16 else _value for spec in method.inputs
            }
            self._outputs = {spec.name: _value_array for spec in method.outputs}
            self._run = session.run_with_ort_values

    def run(self, work: Work, emit: Emit) -> Results:
        """Runs the session once.

        Raises: InvalidInput, Cancelled, ModelFailed.
        """
        feed = work.inputs
        if self._inputs:
            feed = {
                name: self._inputs[name](array, name) if name in self._inputs else array
                for name, array in feed.items()
            }
        options = self._run_options()
        self._running[id(work)] = options, set()
        try:
            found = self._run(work.outputs, feed, options)
        except Exception as error:
            raise _explain(error, options.terminate) from None
        finally:
            del self._running[id(work)]
        tensors = Tensors()
        for name, value in zip(work.outputs, found, strict=True):
            if name in self._outputs:
                value = self._outputs[name](value)
            tensors[name] = Tensor(self._dtypes[name], value.shape, value)
        return Rows(tensors)

    def cancel(self, work: Work, index: int) -> None:
        """Ends the run between two operations once all of its calls are cancelled."""
        running = self._running.get(id(work))
        if running is not None:
            options, cancelled = running
            cancelled.add(index)
            options.terminate = len(cancelled) == work.num_calls

    def close(self) -> None:
        del self._run


def _decoded(array: Array, name: str) -> Array:
    """BYTES as the str objects that ONNX Runtime reads safely; it misreads fixed-width ones."""
    items = np.empty(array.size, np.object_)
    items[:] = texts(array, name, must_encode=True)
    return items.reshape(array.shape)


def _encoded(array: Any) -> Array:
    items = np.empty(array.size, np.object_)
    items[:] = [text.encode() for text in array.ravel().tolist()]
    return items.reshape(array.shape)


def _class_matrix(keys: Sequence[int | str]) -> Callable[[Any], Array]:
    """Turns ZipMap's one dictionary per row into a matrix with one column per class."""
    pick = itemgetter(*keys)

    def matrix(rows: Any) -> Array:
        return np.array([pick(row) for row in rows], np.float32).reshape(len(rows), len(keys))

    return matrix


def _value(array: Array, name: str) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _bf16_value(array: Array, name: str) -> Any:
    from onnxruntime import OrtValue

    bits = np.ascontiguousarray(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)


def _value_array(value: Any) -> Array:
    """numpy has no bfloat16, so its bits are copied out of the value's memory."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    bits = bytearray(ctypes.string_at(value.data_ptr(), 2 * len_of(shape)))
    return np.frombuffer(bits, np.uint16).reshape(shape)


_INPUTS: Final[dict[DType, Callable[[Array, str], Any]]] = {BYTES: _decoded, BF16: _bf16_value}


def _explain(error: Exception, is_cancelled: bool) -> SalverError:
    if is_cancelled:
        return Cancelled("the call was cancelled while the model ran")
    if type(error).__name__ == "InvalidArgument":
        return InvalidInput(_shorten(error))
    return ModelFailed(f"the model failed: {_shorten(error)}")


def _shorten(error: Exception) -> str:
    """One line of what ONNX Runtime says, without its prefix, C++ signatures and source paths."""
    text = str(error).partition("[ONNXRuntimeError] : ")[2] or str(error)
    text = re.sub(r"^\d+ : \w+ : ", "", text)
    text = re.sub(
        r"Non-zero status .* running (\w+) node\. Name:'.*?' Status Message:", r"\1:", text
    )
    text = re.sub(r"\S*/\S+:\d+ .*?\)(?: const)?(?: \[with .*?\])? ", "", text)
    text = text.replace("Please fix either the inputs/outputs or the model.", "")
    return " ".join(without_places(text).split())[:_MAX_MESSAGE]
