"""LightGBM models, predicted through the C functions behind `Booster.predict`."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.errors import LoadFailed, ModelFailed
from salver.interfaces import Probe, Traits
from salver.runtimes.files import find_file, must_exist, require, stays_on_cpu
from salver.runtimes.tabular import (
    both_classes,
    class_names,
    classified,
    classifier_methods,
    column_input,
    column_names,
    matrix_input,
    row_method,
)
from salver.runtimes.texts import texts
from salver.signature import ANY, Signature, TensorSpec
from salver.types import FP64, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Results
    from salver.types import Array, Work

_SUFFIXES: Final = (".txt", ".lgb", ".bst", ".model")
_FLOAT64: Final = 1
_ROW_MAJOR: Final = 1
_NORMAL: Final = 0
_ALL_ITERATIONS: Final = -1


class LightgbmRuntime:
    """Loads what `Booster.save_model` writes."""

    name = "lightgbm"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        file = find_file(path, config, _SUFFIXES, _recognises)
        if file is None:
            return None
        return Probe(runtime=self.name, file=file.name, size_bytes=file.stat().st_size)

    def load(self, spec: LoadSpec) -> LightgbmModel:
        """Raises: MissingExtra, LoadFailed."""
        file = must_exist(
            find_file(spec.path, spec.config, _SUFFIXES, _recognises), "LightGBM model"
        )
        try:
            lightgbm = require("lightgbm", "lightgbm")
        except OSError as error:
            if "libgomp" not in str(error):
                raise
            raise LoadFailed("LightGBM needs libgomp: apt install libgomp1") from None
        stays_on_cpu(spec, "LightGBM")
        if not _is_whole(file):
            raise LoadFailed(f"{file.name} is damaged: its end is missing")
        try:
            booster = lightgbm.Booster(model_file=file)
        except (lightgbm.basic.LightGBMError, ValueError):
            raise LoadFailed(
                f"{file.name} is damaged, or of a newer LightGBM than {lightgbm.__version__}"
            ) from None
        return LightgbmModel(booster, _objective(file), spec)


def _recognises(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(5).rstrip() == b"tree"


def _is_whole(file: Path) -> bool:
    """Whether the file goes to its end. LightGBM aborts the process on most that are cut off."""
    content = file.read_bytes()
    ends = [b"end of trees"]
    if b"\nparameters:" in content:
        ends.append(b"end of parameters")
    return all(b"\n%b\n" % end in content for end in ends)


def _objective(file: Path) -> str:
    """The first word of the model's objective; empty if it has none of LightGBM's own."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("objective="):
                return line.removeprefix("objective=").split()[0]
            if line.startswith("Tree="):
                break
    return ""


class LightgbmModel:
    """Predicts from float64, in which LightGBM keeps its thresholds."""

    def __init__(self, booster: Any, objective: str, spec: LoadSpec) -> None:
        num_columns = booster.num_feature()
        names = column_names(booster.feature_name(), num_columns, spec.config)
        self._categories = _categories(booster)
        self._predict = _Predictor(booster, num_columns, spec.threads)
        self._names = names
        inputs = _inputs(names, self._categories)
        self._by_column = inputs[0].name != "input"
        num_outputs = booster.num_model_per_iteration()
        self._classifies = objective in ("binary", "multiclass", "multiclassova")
        if self._classifies:
            classes = class_names(range(max(num_outputs, 2)), spec.config)
            methods = classifier_methods(inputs, FP64, classes)
        else:
            shape = (ANY,) if num_outputs == 1 else (ANY, num_outputs)
            output = TensorSpec(name="predict", dtype=FP64, shape=shape)
            methods = {"predict": row_method(inputs, output)}
        self.signature = Signature(methods)
        self.traits = Traits(holds_gil=False, thread_safe=True)

    def run(self, work: Work, emit: Emit) -> Results:
        values = self._predict(self._rows(work.inputs))
        if self._classifies:
            if values.shape[1] == 1:
                values = both_classes(values[:, 0])
            return Rows(classified(values, FP64, work.outputs))
        if values.shape[1] == 1:
            values = values[:, 0]
        return Rows(Tensors(predict=Tensor(FP64, values.shape, values)))

    def _rows(self, inputs: Mapping[str, Array]) -> Array:
        if self._by_column:
            return np.stack(
                [self._column(index, name, inputs[name]) for index, name in enumerate(self._names)],
                axis=1,
            )
        rows = inputs["input"]
        if self._categories:
            rows = rows.copy()
            for index, codes in self._categories.items():
                rows[:, index] = _coded(rows[:, index].tolist(), codes)
        return rows

    def _column(self, index: int, name: str, values: Array) -> Any:
        codes = self._categories.get(index)
        if codes is None:
            return values
        known = texts(values, name) if values.dtype == np.object_ else values.tolist()
        return _coded(known, codes)

    def cancel(self, work: Work, index: int) -> None:
        """Nothing to do: LightGBM cannot end a prediction."""

    def close(self) -> None:
        self._predict.close()
        del self._predict


def _categories(booster: Any) -> dict[int, dict[Any, float]]:
    """For each categorical column that came from pandas, the code of each category.

    Raises: LoadFailed when the file does not say which columns these are.
    """
    listed = booster.pandas_categorical or []
    indices = booster.params.get("categorical_feature") or []
    if listed and len(indices) != len(listed):
        raise LoadFailed("the model file does not say which columns are categorical: save it anew")
    return {
        index: {value: float(code) for code, value in enumerate(values)}
        for index, values in zip(indices, listed, strict=False)
    }


def _coded(values: Sequence[Any], codes: Mapping[Any, float]) -> list[float]:
    """Codes of categories; unknown ones count as missing."""
    return [codes.get(value, np.nan) for value in values]


def _inputs(
    names: tuple[str, ...], categories: Mapping[int, Mapping[Any, float]]
) -> tuple[TensorSpec, ...]:
    """One matrix, or one input per column if some columns are text."""
    is_text = [any(isinstance(v, str) for v in categories.get(i, {})) for i in range(len(names))]
    if not any(is_text):
        return (matrix_input(FP64, len(names), names),)
    return tuple(
        column_input(name, is_text=text, number=FP64)
        for name, text in zip(names, is_text, strict=True)
    )


class _Predictor:
    """Calls LightGBM's C functions, a single row with a configuration that is parsed once.

    The Python wrapper costs a single row ten times what the trees do. A configuration holds a
    lock and a buffer of its own, so each thread has one.
    """

    def __init__(self, booster: Any, num_columns: int, threads: int) -> None:
        from lightgbm.basic import _LIB

        self._library = _LIB
        self._booster = booster
        self._num_columns = num_columns
        self._num_outputs = booster.num_model_per_iteration()
        self._options = f"num_threads={threads}".encode()
        self._local = threading.local()
        self._opened: list[ctypes.c_void_p] = []

    def __call__(self, rows: Array) -> Array:
        rows = np.ascontiguousarray(rows)
        result = np.empty((len(rows), self._num_outputs))
        count = ctypes.c_int64()
        data, out = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(result.ctypes.data)
        if len(rows) == 1:
            failed = self._library.LGBM_BoosterPredictForMatSingleRowFast(
                self._single_row(), data, ctypes.byref(count), out
            )
        else:
            failed = self._library.LGBM_BoosterPredictForMat(
                self._booster._handle,
                data,
                _FLOAT64,
                len(rows),
                self._num_columns,
                _ROW_MAJOR,
                _NORMAL,
                0,
                _ALL_ITERATIONS,
                self._options,
                ctypes.byref(count),
                out,
            )
        if failed:
            raise ModelFailed("LightGBM could not predict these rows")
        return result

    def _single_row(self) -> ctypes.c_void_p:
        """This thread's configuration for one row."""
        prepared: ctypes.c_void_p | None = getattr(self._local, "prepared", None)
        if prepared is None:
            prepared = ctypes.c_void_p()
            if self._library.LGBM_BoosterPredictForMatSingleRowFastInit(
                self._booster._handle,
                _NORMAL,
                0,
                _ALL_ITERATIONS,
                _FLOAT64,
                self._num_columns,
                b"num_threads=1",
                ctypes.byref(prepared),
            ):
                raise ModelFailed("LightGBM could not prepare to predict a single row")
            self._local.prepared = prepared
            self._opened.append(prepared)
        return prepared

    def close(self) -> None:
        """Frees what the threads prepared; nothing may run any more."""
        while self._opened:
            self._library.LGBM_FastConfigFree(self._opened.pop())
