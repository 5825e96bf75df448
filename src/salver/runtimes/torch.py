"""Runs PyTorch models: TorchScript, exported programs, and weights or pickles with their class."""

from __future__ import annotations

import importlib
import inspect
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.errors import InvalidInput, LoadFailed, ModelFailed, SalverError
from salver.interfaces import Probe, Traits
from salver.places import text_of, without_places
from salver.runtimes.files import find_file, must_be_trusted, refuse_unknown, require
from salver.runtimes.imports import importable
from salver.runtimes.torch_files import kind_of, safetensors_names, why_trust
from salver.runtimes.torch_signature import (
    DTYPES,
    Argument,
    configured,
    configured_inputs,
    exported_method,
    method_by_trial,
    named,
)
from salver.signature import Signature, one_row
from salver.types import BF16, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Results
    from salver.signature import Method
    from salver.types import Array, DType, Work

_SUFFIXES: Final = (".pt2", ".pt", ".pth", ".safetensors", ".bin")
_WITHOUT_CODE: Final = ("weights", "safetensors")
_NO_CLASS: Final = "holds weights only; name their class in model.yaml: `class_name: module:Class`"
_MAX_MESSAGE: Final = 300
# Warning filters and the number of threads belong to the process: one load at a time.
_LOADING: Final = threading.Lock()


class TorchRuntime:
    """Loads what `torch.jit.save`, `torch.export.save`, `torch.save` and safetensors write."""

    name = "torch"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        """Looks into the archive. A Hugging Face folder is not ours unless a class is named."""
        file = find_file(path, config, _SUFFIXES)
        if file is None or (_is_hugging_face(file) and not config.class_name):
            return None
        kind = kind_of(file)
        if kind is None:
            return None
        return Probe(
            runtime=self.name,
            file=file.name,
            size_bytes=file.stat().st_size,
            trust=why_trust(kind, file, config.class_name),
            detail=kind,
            problem="" if config.class_name or kind not in _WITHOUT_CODE else _NO_CLASS,
        )

    def load(self, spec: LoadSpec) -> TorchModel:
        """Loads the model onto `spec.device`; `torch.set_num_threads` is set for the process.

        Raises: LoadFailed, TrustRequired, MissingExtra.
        """
        torch = require("torch", "torch")
        file = find_file(spec.path, spec.config, _SUFFIXES)
        kind = kind_of(file) if file is not None else None
        if file is None or kind is None:
            raise LoadFailed("there is no PyTorch model here")
        refuse_unknown(spec.config.options, ("arguments",), "option")
        must_be_trusted(spec, why_trust(kind, file, spec.config.class_name))
        device = _device(torch, spec.device)
        torch.set_num_threads(spec.threads)
        with _LOADING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _LOADERS[kind](torch, file, spec, device)
            except SalverError:
                raise
            except Exception as error:
                raise LoadFailed(f"{file.name}: {_shorten(error)}") from error


def _is_hugging_face(file: Path) -> bool:
    return (file.parent / "config.json").is_file()


def _device(torch: Any, name: str) -> Any:
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise LoadFailed(f"PyTorch takes device cpu, cuda or cuda:1, not {name!r}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise LoadFailed(
            f"device {name} was asked for and this PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices: install a CUDA build and its driver, or serve with device cpu"
        )
    return torch.device(name)


def _load_script(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    module = torch.jit.load(str(file), map_location=device).eval()
    arguments = [
        Argument(argument.name, argument.has_default_value())
        for argument in module.forward.schema.arguments[1:]
    ]
    return _by_trial(module, arguments, spec, device)


def _load_exported(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    program = torch.export.load(str(file))
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module, in_spec = program.module(), program.call_spec.in_spec
    unflatten = torch.utils._pytree.tree_unflatten

    def call(feed: Mapping[str, Any]) -> Any:
        arguments, keywords = unflatten(list(feed.values()), in_spec)
        return module(*arguments, **keywords)

    return TorchModel(call, exported_method(program, spec.config), spec.config, device)


def _refuse_compiled(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    raise LoadFailed(
        f"{file.name} was compiled for one machine (AOTInductor). Save the program itself with "
        "torch.export.save"
    )


def _load_module(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    with importable(file.parent):
        module = torch.load(file, map_location=device, weights_only=False)
    if isinstance(module, dict) and spec.config.class_name:
        return _with_weights(_tensors(torch, module), file, spec, device)
    if not isinstance(module, torch.nn.Module):
        raise LoadFailed(f"{file.name} holds a {type(module).__name__}, not a torch.nn.Module")
    return _by_trial(module.to(device).eval(), _arguments(module), spec, device)


def _load_weights(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    state = _tensors(torch, torch.load(file, map_location="cpu", weights_only=True))
    if not spec.config.class_name:
        raise _weights_only(file, list(state))
    return _with_weights(state, file, spec, device)


def _load_safetensors(torch: Any, file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    if not spec.config.class_name:
        raise _weights_only(file, safetensors_names(file))
    state = require("safetensors.torch", "torch").load_file(file)
    return _with_weights(state, file, spec, device)


_LOADERS: Final[dict[str, Callable[[Any, Path, LoadSpec, Any], TorchModel]]] = {
    "script": _load_script,
    "exported": _load_exported,
    "compiled": _refuse_compiled,
    "module": _load_module,
    "weights": _load_weights,
    "safetensors": _load_safetensors,
}


def _tensors(torch: Any, loaded: Any) -> dict[str, Any]:
    """The state dict, which training scripts often wrap together with other state."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise LoadFailed(f"the file holds a {type(loaded).__name__}, not named weights")
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def _weights_only(file: Path, names: Sequence[str]) -> LoadFailed:
    first = f", first: {names[0]}" if names else ""
    return LoadFailed(
        f"{file.name} holds weights only ({len(names)} tensors{first}). "
        "Name the class: --class mymodel:Net"
    )


def _with_weights(state: Mapping[str, Any], file: Path, spec: LoadSpec, device: Any) -> TorchModel:
    name = spec.config.class_name
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise LoadFailed(f"class_name must be module:Class, not {name!r}")
    with importable(file.parent):
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ModuleNotFoundError, AttributeError) as error:
            raise LoadFailed(f"class_name {name!r}: {text_of(error)}") from error
        module = found(**spec.config.options.get("arguments", {}))
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in text_of(error).splitlines()]
        raise LoadFailed(f"{file.name} does not fit {name}: {lines[-1]}") from None
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} keys, first: {keys[0]}"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise LoadFailed(f"{file.name} does not fit {name}: {'; '.join(parts)}")
    return _by_trial(module.to(device).eval(), _arguments(module), spec, device)


def _arguments(module: Any) -> list[Argument]:
    return [
        Argument(parameter.name, parameter.default is not parameter.empty)
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _by_trial(
    module: Any, arguments: Sequence[Argument], spec: LoadSpec, device: Any
) -> TorchModel:
    """Calls by name if the inputs are named as arguments, else in their order, as Triton does."""
    inputs = configured_inputs(arguments, spec.config, spec.path.name)
    known = [argument.name for argument in arguments]
    is_by_name = any(item.name in known for item in inputs)
    if is_by_name:
        refuse_unknown([item.name for item in inputs], known, "input")

    def call(feed: Mapping[str, Any]) -> Any:
        return module(**feed) if is_by_name else module(*feed.values())

    names = [option.name for option in spec.config.outputs]
    dtypes = {item.name: item.dtype for item in inputs}

    def trial(arrays: Mapping[str, Array]) -> Mapping[str, Any]:
        return named(_run(call, arrays, dtypes, device), names)

    method = method_by_trial(trial, inputs, arguments, spec.config)
    return TorchModel(call, method, spec.config, device)


class TorchModel:
    """One module on one device. A run cannot be ended early.

    Operators release the GIL, also those of eager modules: beside a running CNN or 200 tiny
    additions a 1 ms ticker in another thread is hardly later than beside a sleeping one.
    """

    def __init__(
        self, call: Callable[[Mapping[str, Any]], Any], method: Method, config: ModelConfig,
        device: Any,
    ) -> None:  # fmt: skip
        method = one_row(configured(method, config))
        self.signature = Signature({"predict": method})
        self.traits = Traits(
            holds_gil=False, idempotent=True, thread_safe=True, max_batch=method.max_rows
        )
        self._call = call
        self._device = device
        self._dtypes = {spec.name: spec.dtype for spec in method.inputs}
        self._names = [option.name for option in config.outputs]

    def run(self, work: Work, emit: Emit) -> Results:
        """Runs the module once without gradients.

        Raises: InvalidInput, ModelFailed.
        """
        feed = {name: work.inputs[name] for name in self._dtypes if name in work.inputs}
        try:
            found = named(_run(self._call, feed, self._dtypes, self._device), self._names)
        except LoadFailed as error:
            raise ModelFailed(error.message) from None
        tensors = Tensors()
        for name in work.outputs:
            if name not in found:
                raise ModelFailed(f"the model gave no output {name!r} this time")
            tensors[name] = _from_torch(found[name])
        return Rows(tensors)

    def cancel(self, work: Work, index: int) -> None:
        """Nothing to do: PyTorch cannot end a run."""

    def close(self) -> None:
        del self._call


def _run(
    call: Callable[[Mapping[str, Any]], Any],
    arrays: Mapping[str, Array],
    dtypes: Mapping[str, DType],
    device: Any,
) -> Any:
    import torch

    try:
        with torch.inference_mode():
            return call(
                {
                    name: _to_torch(torch, array, dtypes[name]).to(device)
                    for name, array in arrays.items()
                }
            )
    except Exception as error:
        raise _explain(torch, error, device) from None


def _to_torch(torch: Any, array: Array, dtype: DType) -> Any:
    """Shares memory if it may be written: a module that works in place must not reach a request."""
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy()
    if dtype is BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _from_torch(value: Any) -> Tensor:
    dtype = DTYPES[str(value.dtype)]
    value = value.detach().cpu().contiguous()
    if dtype is BF16:
        import torch

        array = value.view(torch.int16).numpy().view(np.uint16)
    else:
        array = value.numpy()
    return Tensor(dtype, array.shape, array)


def _explain(torch: Any, error: Exception, device: Any) -> SalverError:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return ModelFailed(f"out of memory on {device}: send fewer rows or lower batching.max_size")
    if text.startswith("Guard failed") or "index out of range in self" in text:
        return InvalidInput(_shorten(error))
    return ModelFailed(f"the model failed: {_shorten(error)}")


def _shorten(error: Exception) -> str:
    """The line that tells: the last of a TorchScript trace, else the first. Without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = lines[-1] if "TorchScript" in lines[0] else lines[0]
    return without_places(text)[:_MAX_MESSAGE]
