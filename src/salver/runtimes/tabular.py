"""What the runtimes of tabular models share: naming columns, telling classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from salver.errors import LoadFailed
from salver.signature import ANY, Method, TensorSpec
from salver.types import BYTES, INT64, DType, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from salver.config import ModelConfig
    from salver.types import Array


def matrix_input(dtype: DType, num_columns: int, columns: Iterable[str] = ()) -> TensorSpec:
    """One row per example, one column per feature."""
    return TensorSpec(name="input", dtype=dtype, shape=(ANY, num_columns), columns=tuple(columns))


def column_names(detected: Sequence[str], num_columns: int, config: ModelConfig) -> tuple[str, ...]:
    """The configured names of the input columns, else the detected ones.

    Raises: LoadFailed when their number is not the model's.
    """
    if config.columns and len(config.columns) != num_columns:
        raise LoadFailed(
            f"`columns` names {len(config.columns)} columns, the model takes {num_columns}"
        )
    return config.columns or tuple(detected)


def class_names(detected: Sequence[Any], config: ModelConfig) -> tuple[str, ...]:
    """The configured names of the classes, else the detected ones.

    Raises: LoadFailed when their number is not the model's.
    """
    if config.labels and len(config.labels) != len(detected):
        raise LoadFailed(
            f"`labels` names {len(config.labels)} classes, the model has {len(detected)}"
        )
    return config.labels or tuple(str(name) for name in detected)


def label_output(dtype: DType, names: tuple[str, ...]) -> TensorSpec:
    return TensorSpec(name="predict", dtype=dtype, shape=(ANY,), role="label", labels=names)


def probabilities_output(
    dtype: DType, names: tuple[str, ...], *, on_request: bool = False
) -> TensorSpec:
    return TensorSpec(
        name="probabilities",
        dtype=dtype,
        shape=(ANY, len(names)),
        role="probabilities",
        labels=names,
        on_request=on_request,
    )


def row_method(inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> Method:
    return Method(inputs=inputs, outputs=outputs, batching="rows")


def classifier_methods(
    inputs: tuple[TensorSpec, ...], probability: DType, names: tuple[str, ...]
) -> dict[str, Method]:
    """`predict` gives the class's number and, on request, what `predict_proba` gives."""
    return {
        "predict": row_method(
            inputs,
            label_output(INT64, names),
            probabilities_output(probability, names, on_request=True),
        ),
        "predict_proba": row_method(inputs, probabilities_output(probability, names)),
    }


def classified(probabilities: Array, dtype: DType, outputs: Sequence[str]) -> Tensors:
    """Probabilities [rows, classes] as the outputs of `classifier_methods`."""
    tensors = Tensors()
    if "predict" in outputs:
        labels = probabilities.argmax(axis=1)
        tensors["predict"] = Tensor(INT64, labels.shape, labels)
    if "probabilities" in outputs:
        tensors["probabilities"] = Tensor(dtype, probabilities.shape, probabilities)
    return tensors


def both_classes(positive: Array) -> Array:
    """Probabilities [rows] of the second of two classes as probabilities [rows, 2]."""
    return np.stack((1 - positive, positive), axis=1)


def column_input(name: str, *, is_text: bool, number: DType) -> TensorSpec:
    """One column of a table that mixes text and numbers, which may be missing (NaN)."""
    if is_text:
        return TensorSpec(name=name, dtype=BYTES, shape=(ANY,), content="text")
    return TensorSpec(name=name, dtype=number, shape=(ANY,), columns=(name,))
