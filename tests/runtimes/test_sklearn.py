from __future__ import annotations

import argparse
import sys
import warnings

import joblib
import numpy as np
import pandas
import pytest
import sklearn
import skops.io
from sklearn import datasets
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from salver.config import ModelConfig
from salver.errors import InvalidInput, LoadFailed, MissingExtra, TrustRequired
from salver.runtimes.sklearn import SklearnModel, SklearnRuntime
from salver.types import BYTES, FP64, INT64

RUNTIME = SklearnRuntime()
IRIS = datasets.load_iris()
DIABETES = datasets.load_diabetes()
SPECIES = IRIS.target_names[IRIS.target]
FRAME = datasets.load_iris(as_frame=True).data


@pytest.fixture
def serve(tmp_path, load):
    def serve(estimator, **options):
        joblib.dump(estimator, tmp_path / "m.joblib")
        return load(RUNTIME, tmp_path / "m.joblib", trusted=True, **options)

    return serve


@pytest.mark.parametrize(
    "estimator",
    [
        CalibratedClassifierCV(LinearSVC(), cv=2),
        DecisionTreeClassifier(max_depth=2),
        GaussianNB(),
        GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2),
        HistGradientBoostingClassifier(max_iter=3),
        KNeighborsClassifier(4, n_jobs=2),
        LogisticRegression(max_iter=500),
        MLPClassifier((4,), solver="lbfgs", max_iter=500, random_state=0),
        RandomForestClassifier(9, n_jobs=2),
        VotingClassifier([("a", RandomForestClassifier(3)), ("b", GaussianNB())], voting="soft"),
        make_pipeline(StandardScaler(), RandomForestClassifier(5)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_classifiers(serve, run, estimator):
    estimator.fit(IRIS.data, SPECIES)
    model = serve(estimator)
    assert model.signature.default == "predict"
    for rows in (IRIS.data, IRIS.data[:1]):
        found = run(model, {"input": rows}, outputs=("predict", "probabilities"))
        np.testing.assert_array_equal(found["predict"], estimator.predict(rows))
        np.testing.assert_array_equal(found["probabilities"], estimator.predict_proba(rows))
        labels = run(model, {"input": rows})["predict"]
        np.testing.assert_array_equal(labels, estimator.predict(rows))
        np.testing.assert_array_equal(
            run(model, {"input": rows}, "predict_proba")["probabilities"],
            estimator.predict_proba(rows),
        )


def test_what_a_classifier_says_of_itself(serve):
    model = serve(LogisticRegression(max_iter=500).fit(IRIS.data, SPECIES))
    method = model.signature.methods["predict"]
    assert list(model.signature.methods) == ["predict", "predict_proba", "decision_function"]
    assert (method.batching, method.default_outputs()) == ("rows", ("predict",))
    assert (method.inputs[0].dtype, method.inputs[0].shape) == (FP64, (-1, 4))
    label, probabilities = method.output("label"), method.output("probabilities")
    assert (label.dtype, probabilities.shape, probabilities.on_request) == (BYTES, (-1, 3), True)
    assert label.labels == probabilities.labels == ("setosa", "versicolor", "virginica")
    assert model.traits.thread_safe
    assert model.traits.holds_gil


def test_number_classes_can_be_named(serve, run):
    estimator = DecisionTreeClassifier().fit(IRIS.data, IRIS.target)
    model = serve(estimator, labels=("a", "b", "c"))
    assert model.signature.methods["predict"].output("label").labels == ("a", "b", "c")
    assert model.signature.methods["predict"].output("label").dtype is INT64
    np.testing.assert_array_equal(run(model, {"input": IRIS.data})["predict"], IRIS.target)
    with pytest.raises(LoadFailed, match="names 1 classes, the model has 3"):
        serve(estimator, labels=("a",))


def test_without_probabilities(serve, run):
    estimator = SVC().fit(IRIS.data, SPECIES)
    model = serve(estimator)
    assert list(model.signature.methods) == ["predict", "decision_function"]
    assert model.signature.methods["predict"].output("probabilities") is None
    np.testing.assert_array_equal(
        run(model, {"input": IRIS.data}, "decision_function")["decision_function"],
        estimator.decision_function(IRIS.data),
    )


@pytest.mark.parametrize(
    "estimator",
    [
        ExtraTreesRegressor(7, n_jobs=2),
        HistGradientBoostingRegressor(max_iter=3),
        LinearRegression(),
        RandomForestRegressor(7),
        Ridge(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize("num_targets", [1, 2])
def test_regressors(serve, run, estimator, num_targets):
    target = DIABETES.target
    if num_targets == 2:
        if isinstance(estimator, HistGradientBoostingRegressor):
            estimator = MultiOutputRegressor(estimator)
        target = np.stack((target, -target), axis=1)
    estimator.fit(DIABETES.data, target)
    model = serve(estimator)
    for rows in (DIABETES.data, DIABETES.data[:1]):
        found = run(model, {"input": rows})["predict"]
        np.testing.assert_array_equal(found, estimator.predict(rows))


def test_several_labels_per_row_have_no_classes(serve, run):
    target = np.stack((IRIS.target == 0, IRIS.target == 1), axis=1).astype(int)
    estimator = DecisionTreeClassifier().fit(IRIS.data, target)
    model = serve(estimator)
    assert list(model.signature.methods) == ["predict"]
    np.testing.assert_array_equal(run(model, {"input": IRIS.data})["predict"], target)


def test_clusters_and_transforms(serve, run):
    estimator = KMeans(3, n_init=1, random_state=0).fit(IRIS.data)
    model = serve(estimator)
    np.testing.assert_array_equal(run(model, {"input": IRIS.data})["predict"], estimator.labels_)
    found = run(model, {"input": IRIS.data}, "transform")["transform"]
    np.testing.assert_array_equal(found, estimator.transform(IRIS.data))


def test_sparse_transforms_become_dense(serve, run):
    rows = np.array([[1.0], [2.0], [3.0]])
    estimator = OneHotEncoder().fit(rows)
    found = run(serve(estimator), {"input": rows})["transform"]
    np.testing.assert_array_equal(found, np.eye(3))


def test_columns_that_miss_a_value_are_named(serve, run):
    model = serve(LogisticRegression(max_iter=500).fit(FRAME, SPECIES))
    rows = FRAME.to_numpy(copy=True)
    rows[3, [0, 2]] = np.nan
    words = r"row 3: 'sepal length \(cm\)', 'petal length \(cm\)' missing"
    with pytest.raises(InvalidInput, match=words):
        run(model, {"input": rows})


def test_missing_values_are_refused_by_models_that_do_not_take_them(serve, run):
    rows = IRIS.data.copy()
    rows[0, 1] = np.nan
    for estimator in (
        LogisticRegression(max_iter=500),
        LinearRegression(),
        MLPClassifier((4,), solver="lbfgs", max_iter=500, random_state=0),
        make_pipeline(StandardScaler(), SVC()),
    ):
        model = serve(estimator.fit(IRIS.data, IRIS.target))
        with pytest.raises(InvalidInput, match="row 0: column 2 missing"):
            run(model, {"input": rows})
    for estimator in (
        HistGradientBoostingClassifier(max_iter=3),
        RandomForestClassifier(5),
        make_pipeline(SimpleImputer(), SVC()),
    ):
        estimator.fit(rows, SPECIES)
        found = run(serve(estimator), {"input": rows})["predict"]
        np.testing.assert_array_equal(found, estimator.predict(rows))
    rows[0, 1] = np.inf
    model = serve(RandomForestRegressor(3).fit(IRIS.data, IRIS.target))
    with pytest.raises(InvalidInput, match="infinity"):
        run(model, {"input": rows})


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2),
        HistGradientBoostingClassifier(max_iter=3),
        RandomForestClassifier(5),
        VotingClassifier([("a", GaussianNB()), ("b", DecisionTreeClassifier())]),
        make_pipeline(StandardScaler(), PCA(2), GaussianNB()),
        make_pipeline(StandardScaler().set_output(transform="pandas"), GaussianNB()),
        make_pipeline(FunctionTransformer(lambda frame: frame[[FRAME.columns[0]]]), GaussianNB()),
        make_pipeline(
            ColumnTransformer([("scale", StandardScaler(), list(FRAME.columns[:2]))]), GaussianNB()
        ),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_named_columns_come_as_one_matrix(estimator, run, tmp_path):
    estimator.fit(FRAME, SPECIES)
    expected = estimator.predict(FRAME)
    model = SklearnModel(estimator, "m.joblib", ModelConfig())
    (spec,) = model.signature.methods["predict"].inputs
    assert (spec.name, spec.columns) == ("input", tuple(FRAME.columns))
    np.testing.assert_array_equal(run(model, {"input": FRAME.to_numpy()})["predict"], expected)


def passengers():
    return pandas.DataFrame(
        {
            "age": [22.0, 38.0, np.nan, 35.0, 54.0, 2.0],
            "name": ["Owen", "Florence", "Laina", "Lily", "Tim", "Gosta"],
            "sex": ["male", "female", "female", "female", "male", "male"],
            "port": ["S", "C", "S", np.nan, "Q", "S"],
            "class": [3, 1, 3, 1, 1, 3],
        }
    )


def test_text_and_numbers_come_as_columns(serve, run):
    frame = passengers()
    words = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )
    estimator = make_pipeline(
        ColumnTransformer(
            [
                ("words", words, ["sex", "port"]),
                ("numbers", SimpleImputer(), ["age"]),
                ("category", OneHotEncoder(), ["class"]),
            ]
        ),
        LogisticRegression(),
    ).fit(frame, ["no", "yes", "yes", "yes", "no", "no"])
    model = serve(estimator)
    inputs = {spec.name: spec.dtype for spec in model.signature.methods["predict"].inputs}
    assert inputs == {"age": FP64, "sex": BYTES, "port": BYTES, "class": FP64}
    columns = {
        "age": frame["age"].to_numpy(),
        "sex": [word.encode() for word in frame["sex"]],
        "port": [b"S", b"C", b"S", b"", b"Q", b"S"],
        "class": frame["class"].to_numpy(np.float64),
    }
    found = run(model, columns, outputs=("predict", "probabilities"))
    np.testing.assert_array_equal(found["predict"], estimator.predict(frame))
    np.testing.assert_array_equal(found["probabilities"], estimator.predict_proba(frame))
    one = {name: values[:1] for name, values in columns.items()}
    assert run(model, one)["predict"].tolist() == ["no"]
    with pytest.raises(InvalidInput, match=r"^Found unknown categories .*9"):
        run(model, one | {"class": [9.0]})


def test_rows_of_which_all_text_is_missing(serve, run):
    frame = passengers()[["age", "sex"]]
    words = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("words", words, ["sex"]), ("numbers", SimpleImputer(), ["age"])])
    model = serve(make_pipeline(columns, GaussianNB()).fit(frame, [0, 1, 1, 1, 0, 0]))
    alone = {"age": np.array([22.0]), "sex": [b""]}
    beside = {"age": np.array([22.0, 38.0]), "sex": [b"", b"female"]}
    assert run(model, alone)["predict"][0] == run(model, beside)["predict"][0]


def test_text_columns_without_a_column_transformer(serve, run):
    frame = passengers()[["sex", "class"]]
    estimator = make_pipeline(OneHotEncoder(sparse_output=False), GaussianNB())
    estimator.fit(frame, [0, 1, 1, 1, 0, 0])
    model = serve(estimator)
    inputs = {spec.name: spec.dtype for spec in model.signature.methods["predict"].inputs}
    assert inputs == {"sex": BYTES, "class": FP64}
    columns = {"sex": list(frame["sex"]), "class": frame["class"].to_numpy(np.float64)}
    np.testing.assert_array_equal(run(model, columns)["predict"], estimator.predict(frame))


def test_categories_that_gradient_boosting_encodes_itself(serve, run):
    frame = passengers()[["age", "sex"]].astype({"sex": "category"})
    estimator = HistGradientBoostingClassifier(min_samples_leaf=1, max_iter=5)
    estimator.fit(frame, [0, 1, 1, 1, 0, 0])
    model = serve(estimator)
    columns = {"age": frame["age"].to_numpy(), "sex": list(frame["sex"])}
    np.testing.assert_array_equal(run(model, columns)["predict"], estimator.predict(frame))


def test_a_matrix_of_text(serve, run):
    rows = np.array([["a", "x"], ["b", "y"], ["a", "y"]], dtype=object)
    estimator = OneHotEncoder(sparse_output=False).fit(rows)
    model = serve(estimator)
    assert model.signature.methods["transform"].inputs[0].dtype is BYTES
    found = run(model, {"input": np.array([[b"a", b"y"]], dtype=object)})["transform"]
    np.testing.assert_array_equal(found, estimator.transform([["a", "y"]]))


def test_texts(serve, run):
    texts = ["good tea", "bad tea", "good cake", "bad service"]
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression())
    estimator.fit(texts, ["pos", "neg", "pos", "neg"])
    model = serve(estimator)
    (spec,) = model.signature.methods["predict"].inputs
    assert (spec.name, spec.dtype, spec.shape, spec.content) == ("text", BYTES, (-1,), "text")
    found = run(model, {"text": [b"good", "bad käse".encode()]})["predict"]
    assert found.tolist() == ["pos", "neg"]
    with pytest.raises(InvalidInput, match="'text': a value is not UTF-8 text"):
        run(model, {"text": [b"\xff"]})


def test_dictionaries_are_not_served(serve):
    estimator = make_pipeline(DictVectorizer(sparse=False), GaussianNB())
    estimator.fit([{"a": 1}, {"a": 2}], [0, 1])
    with pytest.raises(LoadFailed, match="takes dictionaries"):
        serve(estimator)


def test_a_pipeline_of_unknown_width(serve, run):
    estimator = make_pipeline(FunctionTransformer(np.abs), StandardScaler())
    estimator.fit(IRIS.data)
    vars(estimator.steps[0][1]).pop("n_features_in_", None)
    model = serve(estimator)
    assert model.signature.methods["transform"].inputs[0].shape == (-1, -1)
    found = run(model, {"input": IRIS.data})["transform"]
    np.testing.assert_array_equal(found, estimator.transform(IRIS.data))


def test_configured_columns_make_frames_for_user_code(run):
    estimator = make_pipeline(FunctionTransformer(lambda frame: frame[["b"]]), GaussianNB())
    rows = IRIS.data[:, :2]
    estimator.fit(pandas.DataFrame(rows, columns=["a", "b"]), SPECIES)
    expected = estimator.predict(pandas.DataFrame(rows, columns=["a", "b"]))
    for name in ("n_features_in_", "feature_names_in_"):
        vars(estimator.steps[0][1]).pop(name, None)
    model = SklearnModel(estimator, "m.joblib", ModelConfig(columns=("a", "b")))
    assert model.signature.methods["predict"].inputs[0].columns == ("a", "b")
    np.testing.assert_array_equal(run(model, {"input": rows})["predict"], expected)


def test_pickles_need_trust(tmp_path, load):
    joblib.dump(GaussianNB().fit(IRIS.data, IRIS.target), tmp_path / "clf.joblib")
    probe = RUNTIME.probe(tmp_path / "clf.joblib", ModelConfig())
    assert probe.trust.startswith("clf.joblib is a pickle: opening it runs code")
    with pytest.raises(TrustRequired, match=r"^clf\.joblib is a pickle.*--trust"):
        load(RUNTIME, tmp_path / "clf.joblib")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


def test_an_untrusted_pickle_is_never_opened(tmp_path, load):
    joblib.dump(Bomb(), tmp_path / "m.pkl")
    RUNTIME.probe(tmp_path / "m.pkl", ModelConfig())
    with pytest.raises(TrustRequired):
        load(RUNTIME, tmp_path / "m.pkl")


def test_skops_needs_no_trust(tmp_path, load, run):
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS.data, SPECIES)
    skops.io.dump(estimator, tmp_path / "m.skops")
    assert RUNTIME.probe(tmp_path / "m.skops", ModelConfig()).trust == ""
    model = load(RUNTIME, tmp_path / "m.skops")
    found = run(model, {"input": IRIS.data})["predict"]
    np.testing.assert_array_equal(found, estimator.predict(IRIS.data))


def test_skops_lists_the_types_to_trust(tmp_path, load, run):
    estimator = GaussianNB().fit(IRIS.data, SPECIES)
    estimator.note = argparse.Namespace(author="somebody")
    skops.io.dump(estimator, tmp_path / "m.skops")
    with pytest.raises(TrustRequired, match=r"options: \{trusted_types: \[argparse\.Namespace\]\}"):
        load(RUNTIME, tmp_path / "m.skops")
    model = load(RUNTIME, tmp_path / "m.skops", options={"trusted_types": ["argparse.Namespace"]})
    found = run(model, {"input": IRIS.data})["predict"]
    np.testing.assert_array_equal(found, estimator.predict(IRIS.data))


def test_another_version_is_a_warning(tmp_path, load):
    estimator = make_pipeline(StandardScaler(), GaussianNB()).fit(IRIS.data, IRIS.target)
    joblib.dump(estimator, tmp_path / "m.joblib")
    content = (tmp_path / "m.joblib").read_bytes()
    older = content.replace(sklearn.__version__.encode(), b"1.0.2")
    assert older != content
    (tmp_path / "m.joblib").write_bytes(older)
    said = []
    load(RUNTIME, tmp_path / "m.joblib", trusted=True, warn=said.append)
    assert len(said) == 1
    assert said[0].startswith("m.joblib was made with scikit-learn 1.0.2 and runs on")


def test_what_is_no_fitted_estimator(serve):
    with pytest.raises(LoadFailed, match=r"m\.joblib holds a dict"):
        serve({"weights": [1, 2]})
    with pytest.raises(LoadFailed, match="before it was fitted"):
        serve(GaussianNB())


def test_an_estimator_that_predicts_nothing_new(serve):
    with pytest.raises(LoadFailed, match="holds a DBSCAN, which has none of predict, "):
        serve(DBSCAN().fit(IRIS.data))


def test_a_damaged_file_and_a_missing_module(tmp_path, load):
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04junk")
    with pytest.raises(LoadFailed, match=r"^m\.pkl could not be opened"):
        load(RUNTIME, tmp_path / "m.pkl", trusted=True)
    (tmp_path / "m.pkl").write_bytes(b"cnowhere_at_all\nThing\n.")
    with pytest.raises(LoadFailed, match="needs the Python module 'nowhere_at_all'"):
        load(RUNTIME, tmp_path / "m.pkl", trusted=True)


def test_a_pickle_from_a_script_that_is_not_here(tmp_path, load):
    (tmp_path / "m.pkl").write_bytes(b"cargparse\nTransformer\n.")
    with pytest.raises(LoadFailed, match="from the script that saved it"):
        load(RUNTIME, tmp_path / "m.pkl", trusted=True)


def test_frames_need_pandas(monkeypatch):
    scaled = ColumnTransformer([("scale", StandardScaler(), list(FRAME.columns))])
    estimator = make_pipeline(scaled, GaussianNB()).fit(FRAME, SPECIES)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match="needs `pip install pandas`"):
        SklearnModel(estimator, "m.joblib", ModelConfig())


def test_a_missing_framework(tmp_path, load, monkeypatch):
    joblib.dump(GaussianNB().fit(IRIS.data, IRIS.target), tmp_path / "m.joblib")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'salver\[sklearn\]'"):
        load(RUNTIME, tmp_path / "m.joblib", trusted=True)


@pytest.mark.parametrize("package", ["xgboost", "lightgbm"])
def test_wrappers_of_other_libraries(serve, run, package):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip(package)
    classifier = library.XGBClassifier if package == "xgboost" else library.LGBMClassifier
    estimator = classifier(n_estimators=3, n_jobs=1)
    for data in (IRIS.data, FRAME):
        estimator.fit(data, IRIS.target)
        pipeline = make_pipeline(StandardScaler(), classifier(n_estimators=3, n_jobs=1))
        for made in (estimator, pipeline.fit(data, IRIS.target)):
            found = run(serve(made), {"input": IRIS.data})["predict"]
            np.testing.assert_array_equal(found, made.predict(data))
