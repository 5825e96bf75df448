"""XGBoost models, predicted through the C function behind `Booster.inplace_predict`."""

from __future__ import annotations

import ctypes
import json
import re
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
    column_names,
    matrix_input,
    row_method,
)
from salver.runtimes.ubjson import is_whole
from salver.signature import ANY, Signature, TensorSpec
from salver.types import FP32, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Results
    from salver.types import Array, Work

_SUFFIXES: Final = (".json", ".ubj", ".bst", ".model")
_JSON_HEAD: Final = rb'\s*\{\s*("version"\s*:\s*\[[\d,\s]*\]\s*,\s*)?"learner"\s*:\s*\{'
_UBJSON_HEAD: Final = rb"\{L.{8}learner\{"
_HEAD: Final = re.compile(rb"%b|%b" % (_JSON_HEAD, _UBJSON_HEAD), re.DOTALL)
_PROBABILISTIC: Final = ("binary:logistic", "multi:softprob", "multi:softmax")


class XgboostRuntime:
    """Loads what `Booster.save_model` and the scikit-learn wrappers write."""

    name = "xgboost"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        file = find_file(path, config, _SUFFIXES, _recognises)
        if file is None:
            return None
        return Probe(runtime=self.name, file=file.name, size_bytes=file.stat().st_size)

    def load(self, spec: LoadSpec) -> XgboostModel:
        """Raises: MissingExtra, LoadFailed."""
        file = must_exist(
            find_file(spec.path, spec.config, _SUFFIXES, _recognises), "XGBoost model"
        )
        xgboost = require("xgboost", "xgboost")
        stays_on_cpu(spec, "XGBoost")
        content = bytearray(file.read_bytes())  # XGBoost tells formats of files by suffix only
        # XGBoost reads beyond the end of UBJSON that is cut off.
        if content.startswith(b"{L") and not is_whole(content):
            raise LoadFailed(f"{file.name} is damaged: it does not go to its end")
        try:
            booster = xgboost.Booster({"nthread": spec.threads}, model_file=content)
        except (xgboost.core.XGBoostError, UnicodeDecodeError):
            raise LoadFailed(
                f"{file.name} is damaged, or of a newer XGBoost than {xgboost.__version__}"
            ) from None
        if "c" in (booster.feature_types or ()):
            spec.warn(f"{file.name} has categorical columns: they take the categories' codes")
        return XgboostModel(booster, spec.config)


def _recognises(file: Path) -> bool:
    with file.open("rb") as stream:
        return _HEAD.match(stream.read(256)) is not None


class XgboostModel:
    """Predicts with the trees up to the best iteration, as XGBoost's scikit-learn wrappers do."""

    def __init__(self, booster: Any, config: ModelConfig) -> None:
        learner = json.loads(booster.save_config())["learner"]
        self._objective: str = learner["objective"]["name"]
        linear = learner["gradient_booster"]["name"] == "gblinear"
        predict = _LinearPredictor if linear else _TreePredictor
        self._predict = predict(booster, margin=self._objective == "multi:softmax")
        self.traits = Traits(holds_gil=False, thread_safe=not linear)

        num_columns = booster.num_features()
        names = column_names(booster.feature_names or (), num_columns, config)
        inputs = (matrix_input(FP32, num_columns, names),)
        num_outputs = self._predict(np.zeros((1, num_columns), np.float32)).shape[1]
        self._no_rows = np.empty((0, num_outputs), np.float32)
        num_classes = int(learner["learner_model_param"]["num_class"]) or 2
        multilabel = self._objective == "binary:logistic" and num_outputs > 1
        self._classifies = self._objective in _PROBABILISTIC and not multilabel
        if self._classifies:
            methods = classifier_methods(inputs, FP32, class_names(range(num_classes), config))
        else:
            shape = (ANY,) if num_outputs == 1 else (ANY, num_outputs)
            methods = {
                "predict": row_method(inputs, TensorSpec(name="predict", dtype=FP32, shape=shape))
            }
        self.signature = Signature(methods)

    def run(self, work: Work, emit: Emit) -> Results:
        values = self._predict(work.inputs["input"]) if work.rows else self._no_rows
        if self._classifies:
            return Rows(classified(self._probabilities(values), FP32, work.outputs))
        if values.shape[1] == 1:
            values = values[:, 0]
        return Rows(Tensors(predict=Tensor(FP32, values.shape, values)))

    def _probabilities(self, values: Array) -> Array:
        if self._objective == "binary:logistic":
            return both_classes(values[:, 0])
        if self._objective == "multi:softmax":
            weights = np.exp(values - values.max(axis=1, keepdims=True))
            return np.asarray(weights / weights.sum(axis=1, keepdims=True))
        return values

    def cancel(self, work: Work, index: int) -> None:
        """Nothing to do: XGBoost cannot end a prediction."""

    def close(self) -> None:
        del self._predict


def _iteration_end(booster: Any) -> int:
    """One past the last iteration to use; 0 for all."""
    best = booster.attr("best_iteration")
    return int(best) + 1 if best is not None else 0


class _TreePredictor:
    """Calls `XGBoosterPredictFromDense` with arguments that are written once.

    The Python wrapper around it writes and checks them for each call, which costs a single row as
    much again as the trees do. Safe in several threads: XGBoost keeps a result per thread.
    """

    def __init__(self, booster: Any, *, margin: bool) -> None:
        from xgboost.core import _LIB

        self._library = _LIB
        self._booster = booster
        self._handle = booster.handle
        self._arguments = json.dumps(
            {
                "type": int(margin),
                "training": False,
                "iteration_begin": 0,
                "iteration_end": _iteration_end(booster),
                "missing": float("nan"),
                "strict_shape": True,
                "cache_id": 0,
            }
        ).encode()

    def __call__(self, rows: Array) -> Array:
        rows = np.ascontiguousarray(rows)
        values = ctypes.POINTER(ctypes.c_float)()
        shape = ctypes.POINTER(ctypes.c_uint64)()
        num_dims = ctypes.c_uint64()
        failed = self._library.XGBoosterPredictFromDense(
            self._handle,
            b'{"data":[%d,true],"shape":[%d,%d],"strides":null,"typestr":"<f4","version":3}'
            % (rows.ctypes.data, *rows.shape),
            self._arguments,
            None,
            ctypes.byref(shape),
            ctypes.byref(num_dims),
            ctypes.byref(values),
        )
        if failed:
            raise ModelFailed("XGBoost could not predict these rows")
        num_rows, num_outputs = shape[0], shape[1]
        result = np.empty((num_rows, num_outputs), np.float32)
        ctypes.memmove(result.ctypes.data, values, result.nbytes)
        return result


class _LinearPredictor:
    """Linear boosters predict from a DMatrix only."""

    def __init__(self, booster: Any, *, margin: bool) -> None:
        from xgboost import DMatrix

        self._matrix = DMatrix
        self._booster = booster
        self._margin = margin

    def __call__(self, rows: Array) -> Array:
        values = self._booster.predict(
            self._matrix(rows), output_margin=self._margin, validate_features=False
        )
        return np.asarray(values, np.float32).reshape(len(rows), -1)
