"""An author's method as a served one: its signature, from type hints, and the way through it."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import logging
import typing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from salver.authoring import ROWS
from salver.errors import ModelFailed, SalverError
from salver.places import text_of, told
from salver.runtimes.hints import REMEDY, HintError, converter, without_none
from salver.signature import Method, TensorSpec
from salver.types import Rows, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from salver.interfaces import Emit, Results
    from salver.runtimes.hints import Converter
    from salver.runtimes.private_loop import Run
    from salver.signature import Batching
    from salver.types import Work

log = logging.getLogger("salver.runtimes.python")
_ASYNC_STREAMS: Final = {
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
}
_STREAMS: Final = _ASYNC_STREAMS | {
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
}


class ServedMethod:
    """One method: `method` is what clients see, `run` what an instance does.

    Raises: HintError when its hints cannot be served.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        hints = _hints(function)
        inputs, optional = _parameters(function, hints)
        given = hints.get("return")
        if given in (None, type(None)):
            raise HintError(f"the return type has no hint; {REMEDY}")
        origin = typing.get_origin(given)
        streams = origin in _STREAMS
        self._gives_coroutine = inspect.iscoroutinefunction(function)
        self.is_async = self._gives_coroutine or origin in _ASYNC_STREAMS
        if streams:
            given = typing.get_args(given)[0]
        batching = _batching(inputs, streams)
        if batching == "items":
            inputs = {key: _item(hint) for key, hint in inputs.items()}
            given = _returned_item(given)
        self._inputs = {key: converter(hint) for key, hint in inputs.items()}
        batching = self._rows_or(batching, streams)
        self._has_parts, outputs = _parts(given)
        self._outputs = {key: converter(hint) for key, hint in outputs.items()}
        self._where = {key: f"{name}: output {key!r}" for key in outputs}
        if batching == "rows" and not all(c.is_rows for c in self._outputs.values()):
            raise HintError(f'every output needs "{ROWS}" first, as the inputs have it')
        self.method = Method(
            inputs=_specs(self._inputs, optional),
            outputs=_specs(self._outputs, ()),
            batching=batching,
            streams=streams,
            doc=(inspect.getdoc(function) or "").partition("\n")[0],
        )

    def _rows_or(self, batching: Batching, streams: bool) -> Batching:
        has_rows = [c.is_rows for c in self._inputs.values()]
        if batching == "items" or streams or not any(has_rows):
            return batching
        if not all(has_rows):
            raise HintError(
                f'where one input has rows, all need "{ROWS}" first; '
                "settings are in salver.context().parameters"
            )
        return "rows"

    def run(self, work: Work, emit: Emit, run: Run) -> Results:
        """Raises: whatever the author's code raises, InvalidInput, ModelFailed, Cancelled."""
        if self.method.streams:
            return self._stream(work, emit, run)
        if self.method.batching == "items":
            return self._items(work, run)
        given = self._call(self._decode(work.inputs), run)
        outputs = self._encode(given, work.outputs)
        if self.method.batching == "single":
            return [outputs]
        for name, tensor in outputs.items():
            if tensor.shape[0] != work.rows:
                raise ModelFailed(
                    f"{self._where[name]}: expected {work.rows} rows, got {tensor.shape[0]}"
                )
        return Rows(outputs)

    def _call(self, inputs: dict[str, Any], run: Run) -> Any:
        given = self._function(**inputs)
        return run.wait(given) if self._gives_coroutine else given

    def _items(self, work: Work, run: Run) -> Results:
        inputs = {
            name: [self._inputs[name].decode(array, name) for array in arrays]
            for name, arrays in work.inputs.items()
        }
        given = self._call(inputs, run)
        if not isinstance(given, list | tuple) or len(given) != work.num_calls:
            got = f"{len(given)}" if isinstance(given, list | tuple) else type(given).__name__
            raise ModelFailed(f"{self.name}: expected a list of {work.num_calls} items, got {got}")
        return [self._item_result(item, work.outputs) for item in given]

    def _item_result(self, item: Any, names: tuple[str, ...]) -> Tensors | SalverError:
        """An item that is an exception, or is not what was promised, fails its own call only."""
        if isinstance(item, SalverError):
            return item
        if isinstance(item, Exception):
            log.error("%s: an item failed", self.name, exc_info=item)
            return ModelFailed(f"{self.name}: {told(item)}")
        try:
            return self._encode(item, names)
        except ModelFailed as error:
            return error

    def _stream(self, work: Work, emit: Emit, run: Run) -> Results:
        items = run.each(self._call(self._decode(work.inputs), run))
        try:
            for item in items:
                emit(0, self._encode(item, work.outputs))
                run.check()
        finally:
            items.close()
        return [None]

    def _decode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: self._inputs[name].decode(array, name) for name, array in inputs.items()}

    def _encode(self, given: Any, names: tuple[str, ...]) -> Tensors:
        values = self._split(given) if self._has_parts else {next(iter(self._outputs)): given}
        return Tensors(
            {name: self._outputs[name].encode(values[name], self._where[name]) for name in names}
        )

    def _split(self, given: Any) -> dict[str, Any]:
        """Several outputs by name, from a tuple, a dict or an object with attributes."""
        names = self._outputs
        if isinstance(given, tuple | list):
            if len(given) == len(names):
                return dict(zip(names, given, strict=True))
        elif isinstance(given, dict):
            if given.keys() >= names.keys():
                return given
        elif all(hasattr(given, name) for name in names):
            return {name: getattr(given, name) for name in names}
        raise ModelFailed(
            f"{self.name}: expected the outputs {', '.join(names)}, got {_describe(given)}"
        )

    def set_labels(self, labels: tuple[str, ...]) -> bool:
        """Marks the outputs that class names belong to; False if there is none."""
        outputs = [_with_labels(spec, labels) for spec in self.method.outputs]
        self.method = msgspec.structs.replace(self.method, outputs=tuple(outputs))
        return any(spec.labels for spec in outputs)


def _with_labels(spec: TensorSpec, labels: tuple[str, ...]) -> TensorSpec:
    if spec.dtype.is_float and spec.shape[-1:] == (len(labels),):
        return msgspec.structs.replace(spec, role="probabilities", labels=labels)
    is_label = spec.dtype.is_integer or spec.content == "text"
    if is_label and spec.shape in ((-1,), (1,), ()):
        return msgspec.structs.replace(spec, role="label", labels=labels)
    return spec


def _hints(annotated: Any) -> dict[str, Any]:
    """Hints as objects; they may be strings, whose mistakes show only now."""
    is_plain = isinstance(annotated, type) or inspect.isroutine(annotated)
    try:
        return typing.get_type_hints(
            annotated if is_plain else type(annotated).__call__, include_extras=True
        )
    except NameError as error:
        raise HintError(f"a type hint names {error.name!r}, which is not imported") from None
    except (TypeError, AttributeError, SyntaxError) as error:
        raise HintError(f"a type hint is wrong: {text_of(error)}") from None


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Hints of all parameters, and the names of those with a default."""
    found, optional = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise HintError(f"{parameter} cannot be served; name every input")
        if name not in hints:
            raise HintError(f"parameter {name!r} has no type hint; {REMEDY}")
        found[name] = hints[name]
        if parameter.default is not parameter.empty:
            optional.append(name)
            found[name] = without_none(hints[name])
    if not found:
        raise HintError("it takes no inputs")
    return found, optional


def _batching(inputs: dict[str, Any], streams: bool) -> Batching:
    has_items = [_is_list(hint) for hint in inputs.values()]
    if not any(has_items):
        return "single"
    if streams:
        raise HintError(
            "a method that streams takes one call at a time, so its inputs are no lists"
        )
    if not all(has_items):
        raise HintError("either every input is list[...], one item per call, or none is")
    return "items"


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is list


def _item(hint: Any) -> Any:
    return typing.get_args(hint)[0]


def _returned_item(hint: Any) -> Any:
    if not _is_list(hint):
        raise HintError("its inputs are lists, one item per call, so it must return list[...]")
    return _item(hint)


def _parts(hint: Any) -> tuple[bool, dict[str, Any]]:
    """Whether the return hint stands for several outputs, and their hints by name."""
    if typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint):
        return True, {f"output_{i}": part for i, part in enumerate(typing.get_args(hint))}
    if isinstance(hint, type) and (
        dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or hasattr(hint, "_fields")
    ):
        return True, _hints(hint)
    return False, {"output": hint}


def _specs(converters: dict[str, Converter], optional: Iterable[str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=name,
            dtype=converter.dtype,
            shape=converter.shape,
            content=converter.content,
            example=converter.example,
            optional=name in optional,
        )
        for name, converter in converters.items()
    )


def _describe(given: Any) -> str:
    if isinstance(given, dict):
        return f"a dict of {', '.join(map(str, given)) or 'nothing'}"
    if isinstance(given, tuple | list):
        sequence: Sequence[Any] = given
        return f"{len(sequence)} values"
    return type(given).__name__
