from __future__ import annotations

import sys

import lightgbm
import numpy as np
import pandas
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from salver.config import ModelConfig
from salver.errors import InvalidInput, LoadFailed, MissingExtra
from salver.runtimes.lightgbm import LightgbmRuntime
from salver.types import BYTES, FP64

RUNTIME = LightgbmRuntime()


def fitted(estimator, data):
    rows, target = data
    return estimator.set_params(n_estimators=8, verbose=-1, n_jobs=1).fit(
        rows, target, feature_name=[f"f{i}" for i in range(rows.shape[1])]
    )


def saved(estimator, path):
    estimator.booster_.save_model(path)
    return path


def test_several_classes(tmp_path, load, run):
    rows, classes = load_iris(return_X_y=True)
    booster = fitted(lightgbm.LGBMClassifier(), (rows, classes)).booster_
    booster.save_model(tmp_path / "m.txt")
    model = load(RUNTIME, tmp_path / "m.txt", labels=("setosa", "versicolor", "virginica"))
    for part in (rows, rows[:1], rows[::2], rows[:0]):
        found = run(model, {"input": part}, outputs=("predict", "probabilities"))
        expected = booster.predict(part) if len(part) else np.empty((0, 3))
        np.testing.assert_array_equal(found["predict"], expected.argmax(axis=1))
        np.testing.assert_array_equal(found["probabilities"], expected)
    spec = model.signature.methods["predict"].output("probabilities")
    assert spec.labels == ("setosa", "versicolor", "virginica")


def test_two_classes(tmp_path, load, run):
    rows, classes = load_breast_cancer(return_X_y=True)
    booster = fitted(lightgbm.LGBMClassifier(), (rows, classes)).booster_
    booster.save_model(tmp_path / "m.bst")
    model = load(RUNTIME, tmp_path / "m.bst")
    positive = booster.predict(rows)
    found = run(model, {"input": rows}, "predict_proba")["probabilities"]
    np.testing.assert_array_equal(found, np.stack((1 - positive, positive), axis=1))
    np.testing.assert_array_equal(run(model, {"input": rows})["predict"], positive > 0.5)


def test_regression_with_missing_values(tmp_path, load, run):
    rows, target = load_diabetes(return_X_y=True)
    rows[::3, 2] = np.nan
    booster = fitted(lightgbm.LGBMRegressor(), (rows, target)).booster_
    booster.save_model(tmp_path / "m.txt")
    model = load(RUNTIME, tmp_path / "m.txt")
    for part in (rows, np.full((1, 10), np.nan)):
        found = run(model, {"input": part})
        np.testing.assert_array_equal(found["predict"], booster.predict(part))
    assert model.signature.methods["predict"].inputs[0].columns == tuple(f"f{i}" for i in range(10))
    assert model.traits.thread_safe


def table(num_rows=300):
    random = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "age": random.normal(40, 10, num_rows),
            "city": pandas.Categorical(random.choice(["Berlin", "Hamburg", "Munich"], num_rows)),
            "rooms": pandas.Categorical(random.choice([3, 5, 9], num_rows)),
        }
    )


def price(frame):
    return frame.age + 20 * (frame.city == "Berlin") + 3 * frame.rooms.astype(int)


def test_text_categories_come_as_columns(tmp_path, load, run):
    frame = table()
    estimator = lightgbm.LGBMRegressor(verbose=-1, n_estimators=8, min_child_samples=1)
    booster = estimator.fit(frame, price(frame)).booster_
    booster.save_model(tmp_path / "m.txt")
    model = load(RUNTIME, tmp_path / "m.txt")
    inputs = model.signature.methods["predict"].inputs
    assert [(spec.name, spec.dtype) for spec in inputs] == [
        ("age", FP64),
        ("city", BYTES),
        ("rooms", FP64),
    ]
    columns = {
        "age": frame.age.to_numpy(),
        "city": [name.encode() for name in frame.city],
        "rooms": frame.rooms.astype(float).to_numpy(),
    }
    np.testing.assert_array_equal(run(model, columns)["predict"], booster.predict(frame))

    unknown = {"age": [40.0], "city": ["Atlantis"], "rooms": [4.0]}
    missing = pandas.DataFrame({"age": [40.0], "city": [None], "rooms": [None]})
    for name in ("city", "rooms"):
        missing[name] = missing[name].astype(frame[name].dtype)
    np.testing.assert_array_equal(run(model, unknown)["predict"], booster.predict(missing))

    with pytest.raises(InvalidInput, match="'city': a value is not UTF-8"):
        run(model, {"age": [40.0], "city": [b"\xff"], "rooms": [3.0]})


def test_number_categories_come_as_they_are(tmp_path, load, run):
    frame = table()[["age", "rooms"]]
    target = frame.age + 3 * frame.rooms.astype(int)
    booster = lightgbm.LGBMRegressor(verbose=-1, n_estimators=8).fit(frame, target).booster_
    booster.save_model(tmp_path / "m.txt")
    model = load(RUNTIME, tmp_path / "m.txt")
    rows = frame.astype(float).to_numpy()
    np.testing.assert_array_equal(run(model, {"input": rows})["predict"], booster.predict(frame))


def test_knows_its_files_by_their_first_line(tmp_path):
    path = saved(
        fitted(lightgbm.LGBMRegressor(), load_diabetes(return_X_y=True)), tmp_path / "m.txt"
    )
    probe = RUNTIME.probe(path, ModelConfig())
    assert (probe.runtime, probe.file, probe.trust) == ("lightgbm", "m.txt", "")
    (tmp_path / "other.txt").write_text("trees are green")
    assert RUNTIME.probe(tmp_path / "other.txt", ModelConfig()) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tree\nversion=v4\n", "its end is missing"),
        ("tree\n\nend of trees\n\nparameters:\n[a: 1]\n", "its end is missing"),
        ("tree\nversion=v4\n\nend of trees\n", "or of a newer LightGBM"),
    ],
)
def test_a_damaged_file(tmp_path, load, capfd, text, problem):
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(LoadFailed, match=rf"^m\.txt is damaged.* {problem}"):
        load(RUNTIME, tmp_path / "m.txt")


def test_a_missing_framework(tmp_path, load, monkeypatch):
    (tmp_path / "m.txt").write_text("tree\n")
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'salver\[lightgbm\]'"):
        load(RUNTIME, tmp_path / "m.txt")


class NoLibgomp:
    """Finds LightGBM, which then does not find the library it needs."""

    def find_spec(self, name, path=None, target=None):
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file")


def test_a_missing_libgomp(tmp_path, load, monkeypatch):
    (tmp_path / "m.txt").write_text("tree\n")
    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.setattr(sys, "meta_path", [NoLibgomp()])
    with pytest.raises(LoadFailed, match="apt install libgomp1"):
        load(RUNTIME, tmp_path / "m.txt")
