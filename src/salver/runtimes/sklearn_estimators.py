"""Walks through scikit-learn estimators, and makes them quick for one row."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def make_quick(estimator: Any) -> None:
    """Takes away what costs one row more than the model itself.

    Jobs: instances run side by side, and starting threads for a row takes longer than the row.
    Forests: scikit-learn passes every tree through joblib, which takes a row from 0.3 to 4 ms
    (100 trees); here the same trees are added up in the same order.
    """
    from sklearn.ensemble._forest import ForestClassifier, ForestRegressor

    for item in nested(estimator):
        if "n_jobs" in vars(item):
            item.n_jobs = 1
        if getattr(item, "n_outputs_", 0) != 1:
            continue
        if getattr(type(item), "predict_proba", None) is ForestClassifier.predict_proba:
            item.predict_proba = partial(_mean_of_trees, item)
        elif getattr(type(item), "predict", None) is ForestRegressor.predict:
            item.predict = partial(_mean_of_only_output, item)


def _mean_of_trees(forest: Any, rows: Any) -> Array:
    """Mean over the trees, [rows, classes]."""
    checked = forest._validate_X_predict(rows)
    first, *others = forest.estimators_
    total: Array = first.tree_.predict(checked)
    for tree in others:
        total += tree.tree_.predict(checked)
    total /= len(forest.estimators_)
    return total


def _mean_of_only_output(forest: Any, rows: Any) -> Array:
    return np.ascontiguousarray(_mean_of_trees(forest, rows)[:, 0])
