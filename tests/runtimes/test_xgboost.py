from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from salver.config import ModelConfig
from salver.errors import InvalidInput, LoadFailed, MissingExtra
from salver.runtimes.xgboost import XgboostRuntime

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import xgboost

RUNTIME = XgboostRuntime()


def iris():
    rows, classes = load_iris(return_X_y=True)
    return rows.astype(np.float32), classes


def cancer():
    rows, classes = load_breast_cancer(return_X_y=True)
    return rows.astype(np.float32), classes


def saved(estimator, path):
    estimator.save_model(path)
    return path


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_several_classes(tmp_path, load, run, suffix):
    rows, classes = iris()
    estimator = xgboost.XGBClassifier(n_estimators=8).fit(rows, classes)
    model = load(RUNTIME, saved(estimator, tmp_path / f"m.{suffix}"))
    for part in (rows, rows[:1], rows[::2]):
        found = run(model, {"input": part}, outputs=("predict", "probabilities"))
        np.testing.assert_array_equal(found["predict"], estimator.predict(part))
        np.testing.assert_array_equal(found["probabilities"], estimator.predict_proba(part))


def test_two_classes(tmp_path, load, run):
    rows, classes = cancer()
    estimator = xgboost.XGBClassifier(n_estimators=8).fit(rows, classes)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.json"), labels=("bad", "good"))
    found = run(model, {"input": rows}, "predict_proba")
    np.testing.assert_array_equal(found["probabilities"], estimator.predict_proba(rows))
    np.testing.assert_array_equal(run(model, {"input": rows})["predict"], estimator.predict(rows))
    assert model.signature.methods["predict"].output("label").labels == ("bad", "good")


def test_softmax_gives_probabilities_too(tmp_path, load, run):
    rows, classes = iris()
    data = xgboost.DMatrix(rows, classes)
    parameters = {"objective": "multi:softmax", "num_class": 3}
    booster = xgboost.train(parameters, data, 8)
    model = load(RUNTIME, saved(booster, tmp_path / "m.json"))
    soft = xgboost.train(parameters | {"objective": "multi:softprob"}, data, 8)
    found = run(model, {"input": rows}, outputs=("predict", "probabilities"))
    np.testing.assert_array_equal(found["predict"], booster.predict(data))
    np.testing.assert_allclose(found["probabilities"], soft.predict(data), rtol=1e-5)


@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
def test_regression(tmp_path, load, run, booster):
    rows, target = load_diabetes(return_X_y=True)
    rows = rows.astype(np.float32)
    estimator = xgboost.XGBRegressor(n_estimators=8, booster=booster).fit(rows, target)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.ubj"))
    assert list(model.signature.methods) == ["predict"]
    np.testing.assert_allclose(
        run(model, {"input": rows})["predict"], estimator.predict(rows), rtol=1e-6
    )
    assert model.traits.thread_safe == (booster != "gblinear")


def test_several_targets(tmp_path, load, run):
    rows, target = load_diabetes(return_X_y=True)
    rows, target = rows.astype(np.float32), np.stack((target, -target), axis=1)
    estimator = xgboost.XGBRegressor(n_estimators=4).fit(rows, target)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.ubj"))
    np.testing.assert_array_equal(run(model, {"input": rows})["predict"], estimator.predict(rows))


def test_missing_values(tmp_path, load, run):
    rows, target = cancer()
    rows[::3, 4] = np.nan
    estimator = xgboost.XGBClassifier(n_estimators=8).fit(rows, target)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.ubj"))
    empty = np.full((1, 30), np.nan, np.float32)
    for part in (rows, empty):
        np.testing.assert_array_equal(
            run(model, {"input": part}, "predict_proba")["probabilities"],
            estimator.predict_proba(part),
        )


def test_uses_the_best_iteration(tmp_path, load, run):
    rows, classes = cancer()
    estimator = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=1.0)
    estimator.fit(rows[:300], classes[:300], eval_set=[(rows[300:], classes[300:])], verbose=False)
    assert estimator.best_iteration < estimator.get_booster().num_boosted_rounds() - 1
    model = load(RUNTIME, saved(estimator, tmp_path / "m.json"))
    np.testing.assert_array_equal(
        run(model, {"input": rows}, "predict_proba")["probabilities"],
        estimator.predict_proba(rows),
    )


def test_columns_are_the_feature_names(tmp_path, load):
    rows, classes = iris()
    data = xgboost.DMatrix(rows, classes, feature_names=["a", "b", "c", "d"])
    path = saved(xgboost.train({}, data, 2), tmp_path / "m.json")
    inputs = load(RUNTIME, path).signature.methods["predict"].inputs
    assert inputs[0].columns == ("a", "b", "c", "d")
    with pytest.raises(LoadFailed, match="names 2 columns, the model takes 4"):
        load(RUNTIME, path, columns=("a", "b"))


def test_refuses_rows_of_another_width(tmp_path, load, run):
    rows, classes = iris()
    estimator = xgboost.XGBClassifier(n_estimators=2).fit(rows, classes)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.ubj"))
    with pytest.raises(InvalidInput, match="expected shape"):
        run(model, {"input": rows[:, :3]})


def test_no_rows(tmp_path, load, run):
    rows, classes = iris()
    estimator = xgboost.XGBClassifier(n_estimators=2).fit(rows, classes)
    model = load(RUNTIME, saved(estimator, tmp_path / "m.ubj"))
    assert run(model, {"input": rows[:0]})["predict"].shape == (0,)


def test_knows_its_files_by_their_heads(tmp_path):
    rows, classes = iris()
    estimator = xgboost.XGBClassifier(n_estimators=2).fit(rows, classes)
    for suffix in ("json", "ubj"):
        path = saved(estimator, tmp_path / f"m.{suffix}")
        probe = RUNTIME.probe(path, ModelConfig())
        assert (probe.runtime, probe.file, probe.trust) == ("xgboost", path.name, "")
        assert probe.size_bytes == path.stat().st_size
    booster = estimator.get_booster()
    (tmp_path / "model.bst").write_bytes(booster.save_raw("ubj"))
    assert RUNTIME.probe(tmp_path / "model.bst", ModelConfig()).runtime == "xgboost"
    for name, text in (("a.json", '{"model_type": "bert"}'), ("b.ubj", "{}"), ("c.bst", "tree")):
        (tmp_path / name).write_text(text)
        assert RUNTIME.probe(tmp_path / name, ModelConfig()) is None


def test_finds_the_model_in_a_folder(tmp_path):
    rows, classes = iris()
    (tmp_path / "a.json").write_text("{}")
    saved(xgboost.XGBClassifier(n_estimators=2).fit(rows, classes), tmp_path / "model.json")
    assert RUNTIME.probe(tmp_path, ModelConfig()).file == "model.json"
    assert RUNTIME.probe(tmp_path, ModelConfig(file="a.json")) is None


def test_a_damaged_file(tmp_path, load):
    (tmp_path / "m.json").write_text('{"learner": {"attributes": {}}')
    with pytest.raises(LoadFailed, match=r"^m\.json is damaged"):
        load(RUNTIME, tmp_path / "m.json")


def test_a_file_that_is_cut_off(tmp_path, load):
    rows, classes = iris()
    path = saved(xgboost.XGBClassifier(n_estimators=2).fit(rows, classes), tmp_path / "m.ubj")
    content = path.read_bytes()
    for size in range(100, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(LoadFailed, match=r"^m\.ubj is damaged"):
            load(RUNTIME, path)


def test_a_missing_framework(tmp_path, load, monkeypatch):
    (tmp_path / "m.json").write_text('{"learner": {}}')
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtra, match=r"pip install 'salver\[xgboost\]'"):
        load(RUNTIME, tmp_path / "m.json")
