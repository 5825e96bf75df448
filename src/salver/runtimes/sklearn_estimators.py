"""Walks through scikit-learn estimators, and makes them quick for one row."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from salver.types import Array


def nested(estimator: Any) -> Iterator[Any]:
    """The estimator and every estimator in it."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif hasattr(item, "get_params") and not isinstance(item, type):
            yield item
            waiting.extend(vars(item).values())


def entry(estimator: Any) -> Any:
    """The estimator that meets the input first."""
    from sklearn.pipeline import FeatureUnion, Pipeline

    while True:
        if isinstance(estimator, Pipeline):
            steps = [step for _, step in estimator.steps]
        elif isinstance(estimator, FeatureUnion):
            steps = [step for _, step in estimator.transformer_list]
        else:
            steps = [vars(estimator).get(name) for name in ("best_estimator_", "regressor_")]
        inner = next((s for s in steps if s is not None and not isinstance(s, str)), None)
        if inner is None:
            return estimator
        estimator = inner


def last(estimator: Any) -> Any:
    """The estimator that gives the outputs."""
    from sklearn.pipeline import Pipeline

    while True:
        if isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        elif "best_estimator_" in vars(estimator):
            estimator = estimator.best_estimator_
        else:
            return estimator


def forget_names(estimator: Any) -> None:
    """Takes away the names of the columns.

    An estimator that was fitted with names warns on every call that comes without them. The engine
    has checked the columns by then, and a DataFrame per call costs more than many models.
    """
    for item in nested(estimator):
        vars(item).pop("feature_names_in_", None)


def make_quick(estimator: Any) -> None:
    """Takes away what costs one row more than the model itself; the results stay the same bits.

    Jobs and OpenMP threads: instances run side by side, and waking threads takes longer than a
    row. Forests: scikit-learn passes every tree through joblib (100 trees: 4.4 ms a row, 0.4
    without). Linear models and perceptrons: its checks of the input take 80 µs of 100; rows that
    are not plainly finite still go through them.
    """
    quick = _quick_methods()
    for item in nested(estimator):
        if "n_jobs" in vars(item):
            item.n_jobs = 1
        for base, name, method in quick:
            original = vars(base).get(name)
            if original is not None and getattr(type(item), name, None) is original:
                setattr(item, name, partial(method, item))


def _quick_methods() -> tuple[tuple[type, str, Callable[..., Any]], ...]:
    """Replacements for methods of classes that inherit them unchanged."""
    from sklearn.ensemble._forest import ForestClassifier, ForestRegressor
    from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import (
        BaseHistGradientBoosting,
    )
    from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
    from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron

    return (
        (ForestClassifier, "predict_proba", _forest_probabilities),
        (ForestRegressor, "predict", _forest_values),
        (BaseHistGradientBoosting, "_raw_predict", _boosted_values),
        (LinearClassifierMixin, "decision_function", _linear_scores),
        (LinearModel, "_decision_function", _linear_values),
        (BaseMultilayerPerceptron, "_forward_pass_fast", _perceptron_values),
    )


def _forest_probabilities(forest: Any, rows: Any) -> Any:
    if forest.n_outputs_ != 1:
        return type(forest).predict_proba(forest, rows)
    return _mean_of_trees(forest, rows)


def _forest_values(forest: Any, rows: Any) -> Any:
    if forest.n_outputs_ != 1:
        return type(forest).predict(forest, rows)
    return _mean_of_trees(forest, rows)[:, 0]


def _mean_of_trees(forest: Any, rows: Any) -> Array:
    """Sums in the trees' order, as scikit-learn does; [rows, values of a leaf]."""
    checked = forest._validate_X_predict(rows)
    first, *others = forest.estimators_
    total: Array = first.tree_.predict(checked)
    for tree in others:
        total += tree.tree_.predict(checked)
    total /= len(forest.estimators_)
    return total


def _boosted_values(booster: Any, rows: Any, n_threads: int | None = None) -> Any:
    return type(booster)._raw_predict(booster, rows, n_threads=n_threads or 1)


def _linear_scores(model: Any, rows: Any) -> Any:
    if not _is_finite(rows):
        return type(model).decision_function(model, rows)
    scores = rows @ model.coef_.T + model.intercept_
    return scores.reshape(-1) if scores.ndim == 2 and scores.shape[1] == 1 else scores


def _linear_values(model: Any, rows: Any) -> Any:
    if not _is_finite(rows):
        return type(model)._decision_function(model, rows)
    return rows @ model.coef_.T + model.intercept_


def _perceptron_values(model: Any, rows: Any, check_input: bool = True) -> Any:
    return type(model)._forward_pass_fast(
        model, rows, check_input=check_input and not _is_finite(rows)
    )


def _is_finite(rows: Any) -> bool:
    """An array of finite floats: nothing that scikit-learn's checks would refuse or change."""
    return type(rows) is np.ndarray and rows.dtype.kind == "f" and bool(np.isfinite(rows).all())
