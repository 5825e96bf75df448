"""scikit-learn estimators and pipelines (.joblib, .pkl, .pickle, .skops)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver.errors import InvalidInput, LoadFailed, MissingExtra, SalverError, TrustRequired
from salver.interfaces import Probe, Traits
from salver.places import text_of
from salver.runtimes.files import (
    IMPORTING,
    find_file,
    must_be_trusted,
    must_exist,
    require,
    stays_on_cpu,
)
from salver.runtimes.sklearn_estimators import last, make_quick
from salver.runtimes.sklearn_inputs import inputs_of, missing_cells
from salver.runtimes.tabular import (
    class_names,
    label_output,
    probabilities_output,
    row_method,
)
from salver.signature import ANY, Signature, TensorSpec
from salver.types import BYTES, FP64, Rows, Tensor, Tensors, dtype_of_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.interfaces import Emit, LoadSpec, Results
    from salver.signature import Method
    from salver.types import Array, Work

    Answer = Callable[[Any, Sequence[str]], Tensors]

_SUFFIXES: Final = (".joblib", ".pkl", ".pickle", ".skops")
_EXTRAS: Final = ("sklearn", "xgboost", "lightgbm", "torch")
_PREDICTS_BY_ARGMAX: Final = {
    "BaggingClassifier",
    "CalibratedClassifierCV",
    "DecisionTreeClassifier",
    "ExtraTreeClassifier",
    "ExtraTreesClassifier",
    "LogisticRegression",
    "MLPClassifier",
    "RandomForestClassifier",
}
"""Classifiers whose `predict` is the class of the highest `predict_proba`."""


class SklearnRuntime:
    """Loads pickles, which need trust, and skops files, which need it for foreign types only."""

    name = "sklearn"

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        file = find_file(path, config, _SUFFIXES)
        if file is None:
            return None
        return Probe(
            runtime=self.name,
            file=file.name,
            size_bytes=file.stat().st_size,
            trust=_why_trust(file),
        )

    def load(self, spec: LoadSpec) -> SklearnModel:
        """Raises: TrustRequired, MissingExtra, LoadFailed."""
        file = must_exist(find_file(spec.path, spec.config, _SUFFIXES), "scikit-learn model")
        must_be_trusted(spec, _why_trust(file))
        require("sklearn", "sklearn")
        stays_on_cpu(spec, "scikit-learn")
        return SklearnModel(_open(file, spec), file.name, spec.config)


def _is_skops(file: Path) -> bool:
    return file.suffix.lower() == ".skops"


def _why_trust(file: Path) -> str:
    if _is_skops(file):
        return ""
    return f"{file.name} is a pickle: opening it runs code from whoever made it"


def _open(file: Path, spec: LoadSpec) -> Any:
    """Reads the estimator and passes warnings about versions on.

    Raises: TrustRequired, MissingExtra, LoadFailed.
    """
    read = _read_skops if _is_skops(file) else _read_pickle
    # Catching warnings swaps a list that all threads share, which the lock also keeps to this one.
    with IMPORTING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = read(file, spec)
        except SalverError:
            raise
        except ModuleNotFoundError as error:
            raise _missing(file, error.name or "") from None
        except AttributeError as error:
            raise LoadFailed(
                f"{file.name} uses a class or function that is not here: one from the script that "
                "saved it, which belongs into a module, or from another version of a package"
            ) from error
        except Exception as error:
            raise LoadFailed(
                f"{file.name} could not be opened: it is damaged, or needs other versions of the "
                f"packages that it was made with ({type(error).__name__})"
            ) from error
    from sklearn import __version__
    from sklearn.exceptions import InconsistentVersionWarning

    made_with = {
        warning.message.original_sklearn_version
        for warning in caught
        if isinstance(warning.message, InconsistentVersionWarning)
    }
    if made_with:
        spec.warn(
            f"{file.name} was made with scikit-learn {', '.join(sorted(made_with))} and runs on "
            f"{__version__}: its outputs may differ. Install that version, or save the model anew"
        )
    return estimator


def _read_pickle(file: Path, spec: LoadSpec) -> Any:
    return require("joblib", "sklearn").load(file)


def _read_skops(file: Path, spec: LoadSpec) -> Any:
    skops = require("skops.io", "sklearn")
    allowed = [str(name) for name in spec.config.options.get("trusted_types", ())]
    unknown = skops.get_untrusted_types(file=file)
    refused = sorted(set(unknown) - set(allowed))
    if refused and not spec.trusted:
        raise TrustRequired(
            f"{file.name} holds types that scikit-learn does not know: {', '.join(refused)}. If "
            f"you trust them, add to model.yaml: "
            f"options: {{trusted_types: [{', '.join(sorted(unknown))}]}}"
        )
    return skops.load(file, trusted=unknown)


def _missing(file: Path, module: str) -> LoadFailed:
    if module in _EXTRAS:
        return MissingExtra(f"{file.name} needs `pip install 'salver[{module}]'`")
    return LoadFailed(f"{file.name} needs the Python module {module!r}, which is not installed")


class SklearnModel:
    """Serves the methods that the estimator has; the first is the default."""

    traits = Traits(thread_safe=True)

    def __init__(self, estimator: Any, file: str, config: ModelConfig) -> None:
        names = ("predict", "predict_proba", "transform", "decision_function")
        if not any(hasattr(estimator, name) for name in names):
            raise LoadFailed(
                f"{file} holds a {type(estimator).__name__}, which has none of {', '.join(names)}"
            )
        self._estimator = estimator
        self._inputs = inputs_of(estimator, config)
        make_quick(estimator)
        self._predicts_by_argmax = type(last(estimator)).__name__ in _PREDICTS_BY_ARGMAX
        self._example = self._inputs.collect(self._inputs.example)
        self._answers: dict[str, Answer] = {}
        self._methods: dict[str, Method] = {}
        if hasattr(estimator, "predict"):
            self._add_predictions(config)
        for name in ("transform", "decision_function"):
            if hasattr(estimator, name):
                self._add(name)
        self.signature = Signature(self._methods)

    def run(self, work: Work, emit: Emit) -> Results:
        rows = self._inputs.collect(work.inputs)
        try:
            return Rows(self._answers[work.method](rows, work.outputs))
        except ValueError as error:
            message = text_of(error).partition("\n")[0]
            missing = "NaN" in message and missing_cells(self._inputs.specs, work.inputs)
            if missing:
                message = f"{missing} missing; the model takes no missing values there"
            raise InvalidInput(message) from error

    def cancel(self, work: Work, index: int) -> None:
        """Nothing to do: scikit-learn cannot end a prediction."""

    def close(self) -> None:
        """Nothing to do: an estimator holds nothing but memory."""

    def _add(self, name: str) -> None:
        """A method with one output of its own name."""
        function = getattr(self._estimator, name)
        array = self._try(name)
        if array is None:
            shape = (ANY, ANY) if name == "transform" else (ANY,)
            spec = TensorSpec(name=name, dtype=FP64, shape=shape)
        else:
            shape = (ANY, *array.shape[1:])
            spec = TensorSpec(name=name, dtype=dtype_of_array(array), shape=shape)
        self._methods[name] = row_method(self._inputs.specs, spec)
        self._answers[name] = lambda rows, outputs: Tensors({name: _tensor(function(rows))})

    def _add_predictions(self, config: ModelConfig) -> None:
        classes = getattr(self._estimator, "classes_", None)
        labels = self._try("predict")
        one_label = isinstance(classes, np.ndarray) and (labels is None or labels.ndim == 1)
        if not one_label or classes is None:
            self._add("predict")
            return
        names = class_names(classes.tolist(), config)
        specs = self._inputs.specs
        label = label_output(dtype_of_array(classes), names)
        self._answers["predict"] = self._predict
        if not hasattr(self._estimator, "predict_proba"):
            self._methods["predict"] = row_method(specs, label)
            return
        on_request = probabilities_output(FP64, names, on_request=True)
        self._methods["predict"] = row_method(specs, label, on_request)
        self._methods["predict_proba"] = row_method(specs, probabilities_output(FP64, names))
        self._answers["predict_proba"] = self._predict

    def _predict(self, rows: Any, outputs: Sequence[str]) -> Tensors:
        estimator = self._estimator
        tensors = Tensors()
        if "probabilities" in outputs:
            probabilities = np.asarray(estimator.predict_proba(rows), np.float64)
            tensors["probabilities"] = Tensor(FP64, probabilities.shape, probabilities)
            if self._predicts_by_argmax and "predict" in outputs:
                tensors["predict"] = _tensor(estimator.classes_[probabilities.argmax(axis=1)])
        if "predict" in outputs and "predict" not in tensors:
            tensors["predict"] = _tensor(estimator.predict(rows))
        return tensors

    def _try(self, name: str) -> Array | None:
        """What the method gives for the example; None if the estimator does not take it.

        Raises: LoadFailed if it was never fitted.
        """
        from sklearn.exceptions import NotFittedError

        try:
            return _array(getattr(self._estimator, name)(self._example))
        except NotFittedError:
            raise LoadFailed("the estimator was saved before it was fitted") from None
        except Exception:
            # The example is a guess: a model that refuses it may still take real rows.
            return None


def _array(value: Any) -> Array:
    """Sparse matrices and DataFrames become arrays."""
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


def _tensor(value: Any) -> Tensor:
    array = _array(value)
    if array.dtype == np.object_:
        array = np.array([str(item) for item in array.ravel()], np.object_).reshape(array.shape)
        return Tensor(BYTES, array.shape, array)
    return Tensor.of(array)
