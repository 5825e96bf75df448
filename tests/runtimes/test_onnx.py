from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from salver.config import ModelConfig, TensorOptions
from salver.errors import Cancelled, InvalidInput, LoadFailed, ModelFailed
from salver.interfaces import LoadSpec
from salver.runtimes.onnx import OnnxRuntime
from salver.types import BF16, BYTES, DTYPES, FP32, INT64, ModelRef, Work, bf16_bits, bf16_floats

if TYPE_CHECKING:
    from pathlib import Path

    from salver.runtimes.onnx import OnnxModel
    from salver.types import Tensors

RUNTIME = OnnxRuntime()
FLOAT = TensorProto.FLOAT
ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def value(name: str, element: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, element, shape)


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, more.pop("initializer", []))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.mkdir(exist_ok=True)
    onnx.save(model, path / "model.onnx", **more)
    return path


def identity(path: Path, element: int = FLOAT, shape: Any = ("n", 2)) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return write(path, [node], [value("x", element, shape)], [value("y", element, shape)])


def spec_of(path: Path, device: str = "cpu", **config: Any) -> LoadSpec:
    return LoadSpec(path=path, ref=ModelRef("m"), config=ModelConfig(**config), device=device)


def load(path: Path, **config: Any) -> OnnxModel:
    return RUNTIME.load(spec_of(path, **config))


def no_stream(index: int, item: Tensors) -> None:
    raise AssertionError("an ONNX model does not stream")


def work_of(inputs: dict[str, Any], *outputs: str, offsets: tuple[int, ...] = (0, 1)) -> Work:
    return Work("predict", inputs, list(offsets), outputs, [{}] * (len(offsets) - 1))


def run(model: OnnxModel, inputs: dict[str, Any], *outputs: str) -> dict[str, Any]:
    results = model.run(work_of(inputs, *outputs), no_stream)
    return {name: tensor.array() for name, tensor in results.tensors.items()}


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any, LogisticRegression]:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return x, y, LogisticRegression(max_iter=200).fit(x, y)


def save_classifier(path: Path, model: Any, x: Any, zipmap: bool) -> Path:
    file = path / "clf.onnx"
    file.write_bytes(
        to_onnx(model, x[:1], options={"zipmap": zipmap}, target_opset=18).SerializeToString()
    )
    return file


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_classifier_gives_labels_and_probabilities(
    tmp_path: Path, digits: Any, zipmap: bool
) -> None:
    x, _, classifier = digits
    file = save_classifier(tmp_path, classifier, x, zipmap)
    model = load(file)
    _, method = model.signature.method("")
    label, probabilities = method.output("label"), method.output("probabilities")
    assert method.batching == "rows"
    assert label is not None
    assert probabilities is not None
    assert label.dtype is INT64
    assert probabilities.shape == (-1, 10)
    got = run(model, {"X": x[:5]}, label.name, probabilities.name)
    assert got[label.name].tolist() == classifier.predict(x[:5]).tolist()
    np.testing.assert_allclose(got[probabilities.name], classifier.predict_proba(x[:5]), atol=1e-5)
    if zipmap:
        assert probabilities.labels == tuple("0123456789")


def test_a_zip_map_with_text_classes(tmp_path: Path, digits: Any) -> None:
    x, y, _ = digits
    classifier = LogisticRegression(max_iter=200).fit(x, np.where(y % 2 == 0, "even", "odd"))
    model = load(save_classifier(tmp_path, classifier, x, True))
    got = run(model, {"X": x[:3]}, "output_label", "output_probability")
    assert got["output_label"].tolist() == [t.encode() for t in classifier.predict(x[:3])]
    assert model.signature.methods["predict"].outputs[1].labels == ("even", "odd")
    np.testing.assert_allclose(
        got["output_probability"], classifier.predict_proba(x[:3]), atol=1e-5
    )


def test_configured_labels_replace_those_of_the_zip_map(tmp_path: Path, digits: Any) -> None:
    x, _, classifier = digits
    file = save_classifier(tmp_path, classifier, x, True)
    names = tuple(f"digit {n}" for n in range(10))
    assert load(file, labels=names).signature.methods["predict"].outputs[1].labels == names
    with pytest.raises(LoadFailed, match="has 10 classes, and 2 labels"):
        load(file, labels=("a", "b"))


def test_the_signature_is_read_without_onnx_runtime(tmp_path: Path) -> None:
    identity(tmp_path)
    code = (
        "import sys, pathlib; from salver.runtimes.onnx import OnnxRuntime;"
        "from salver.config import ModelConfig;"
        "probe = OnnxRuntime().probe(pathlib.Path(sys.argv[1]), ModelConfig());"
        "assert not {'onnxruntime', 'onnx'} & set(sys.modules); print(probe.signature)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "name='x', dtype=FP32, shape=(-1, 2)" in done.stdout


def test_probe_counts_weights_outside_of_the_file(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones(4000, np.float32), "w")
    write(
        tmp_path,
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", FLOAT, ["n", 4000]), value("w", FLOAT, [4000])],
        [value("y", FLOAT, ["n", 4000])],
        initializer=[weights],
        save_as_external_data=True,
        location="model.data",
    )
    probe = RUNTIME.probe(tmp_path, ModelConfig())
    assert probe is not None
    assert probe.size_bytes > 16000
    assert [spec.name for spec in probe.signature.methods["predict"].inputs] == ["x"]  # type: ignore[union-attr]
    assert run(load(tmp_path), {"x": np.zeros((1, 4000), np.float32)}, "y")["y"].sum() == 4000


def test_probe_tells_of_a_file_that_is_cut_off(tmp_path: Path) -> None:
    identity(tmp_path)
    file = tmp_path / "model.onnx"
    file.write_bytes(file.read_bytes()[:-9])
    probe = RUNTIME.probe(tmp_path, ModelConfig())
    assert probe is not None
    assert probe.signature is None
    assert probe.problem
    with pytest.raises(LoadFailed, match=r"model\.onnx"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, b"version https://git-lfs", b"\x3a\x02\x5a"]
)
def test_files_that_are_not_onnx_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"model\.onnx: "):
        load(tmp_path)


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"")
    assert RUNTIME.probe(tmp_path, ModelConfig()) is None
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "b.onnx").write_bytes(b"")
    assert RUNTIME.probe(tmp_path, ModelConfig()) is None
    assert RUNTIME.probe(tmp_path, ModelConfig(file="b.onnx")) is not None


@pytest.mark.parametrize("name", DTYPES)
def test_every_data_type_passes(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    model = load(identity(tmp_path, ELEMENTS[name]))
    method = model.signature.methods["predict"]
    assert method.inputs[0].dtype is method.outputs[0].dtype is dtype
    sent = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype.numpy)
    if dtype is BYTES:
        sent[:] = [[b"a\0b", "ü".encode()], [b"", b"x"], [b"long" * 9, b"y"]]
    got = run(model, {"x": sent}, "y")["y"]
    assert got.dtype == dtype.numpy
    assert got.tolist() == sent.tolist()


def test_bfloat16_is_computed_with(tmp_path: Path) -> None:
    bf16 = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Add", ["f", "f"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=bf16),
    ]
    outputs = [value("y", bf16, ["n"]), value("g", FLOAT, ["n"])]
    model = load(write(tmp_path, nodes, [value("x", bf16, ["n"])], outputs))
    got = run(model, {"x": bf16_bits(np.array([1.5, -3], np.float32))}, "g", "y")
    assert got["g"].tolist() == bf16_floats(got["y"]).tolist() == [3, -6]
    assert model.signature.methods["predict"].outputs[0].dtype is BF16


@pytest.mark.parametrize("shape", [(), (0, 2), (3, 0), (2, 1)])
def test_scalars_and_empty_tensors_pass(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = load(identity(tmp_path, shape=[None] * len(shape)))
    assert model.signature.methods["predict"].inputs[0].shape == (-1,) * len(shape)
    assert run(model, {"x": np.ones(shape, np.float32)}, "y")["y"].shape == shape


@pytest.mark.parametrize("text", [b"\xff", "\ud800"])
def test_text_that_is_not_utf8_fails_its_call(tmp_path: Path, text: Any) -> None:
    model = load(identity(tmp_path, TensorProto.STRING, ["n"]))
    sent = np.array([b"fine", text], np.object_)
    with pytest.raises(InvalidInput, match=r"input 'x': .* not UTF-8"):
        run(model, {"x": sent}, "y")


@pytest.mark.parametrize(
    ("first", "second", "batching"),
    [
        (["n", 2], ["n", 2], "rows"),
        ([None, 2], [None, 2], "rows"),
        (["n", 2], ["m", 2], "single"),
        ([1, 2], ["n", 2], "single"),
        ([2, 2], [2, 2], "single"),
        (["n", 2], [], "single"),
    ],
)
def test_batching_needs_one_varying_first_dimension(
    tmp_path: Path, first: Any, second: Any, batching: str
) -> None:
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("a", "c"), ("b", "d"))]
    write(
        tmp_path,
        nodes,
        [value("a", FLOAT, first), value("b", FLOAT, second)],
        [value("c", FLOAT, first), value("d", FLOAT, second)],
    )
    assert load(tmp_path).signature.methods["predict"].batching == batching


def test_a_model_fixed_to_one_row_takes_rows_singly(tmp_path: Path) -> None:
    model = load(identity(tmp_path, shape=[1, 2]))
    method = model.signature.methods["predict"]
    assert (method.batching, method.max_rows, model.traits.max_batch) == ("rows", 1, 1)
    assert [spec.shape for spec in (*method.inputs, *method.outputs)] == [(1, 2), (1, 2)]


def test_the_configuration_overrides_shapes(tmp_path: Path) -> None:
    identity(tmp_path, shape=["n", None])
    fixed = TensorOptions(name="x", dtype="FP32", shape=(-1, 7))
    inputs = load(tmp_path, inputs=(fixed,)).signature.methods["predict"].inputs
    assert inputs[0].shape == (-1, 7)
    with pytest.raises(LoadFailed, match=r"unknown input 'xx'\. Did you mean 'x'"):
        load(tmp_path, inputs=(TensorOptions(name="xx", dtype="FP32", shape=(1,)),))
    with pytest.raises(LoadFailed, match="input 'x' is FP32 in the file, not INT8"):
        load(tmp_path, inputs=(TensorOptions(name="x", dtype="INT8", shape=(-1, 7)),))
    with pytest.raises(LoadFailed, match="has 2 dimensions in the file, not 1"):
        load(tmp_path, inputs=(TensorOptions(name="x", dtype="FP32", shape=(-1,)),))


def test_an_unknown_number_of_dimensions_is_asked_for(tmp_path: Path) -> None:
    identity(tmp_path, shape=None)
    with pytest.raises(
        LoadFailed, match=r"how many dimensions input 'x'.*`inputs:` in model\.yaml"
    ):
        load(tmp_path)
    shape = TensorOptions(name="x", dtype="FP32", shape=(-1, 2))
    assert load(tmp_path, inputs=(shape,)).signature.methods["predict"].inputs[0].shape == (-1, 2)


def test_labels_make_probabilities_only_after_softmax(tmp_path: Path) -> None:
    for op, role in (("Softmax", "probabilities"), ("Sigmoid", "")):
        node = helper.make_node(op, ["x"], ["y"])
        shape = ["n", 2]
        write(tmp_path, [node], [value("x", FLOAT, shape)], [value("y", FLOAT, shape)])
        output = load(tmp_path, labels=("no", "yes")).signature.methods["predict"].outputs[0]
        assert (output.role, output.labels) == (role, ("no", "yes"))


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    node = helper.make_node("OptionalHasElement", ["o"], ["y"])
    inputs = [helper.make_value_info("o", optional)]
    model = load(write(tmp_path, [node], inputs, [value("y", TensorProto.BOOL, [])]))
    assert model.signature.methods["predict"].inputs[0].optional
    assert run(model, {"o": np.zeros(2, np.float32)}, "y")["y"].tolist() is True
    assert run(model, {}, "y")["y"].tolist() is False


def test_types_that_no_client_can_send_are_refused(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    write(tmp_path, [cast], [value("x", TensorProto.INT4, [2])], [value("y", FLOAT, [2])])
    with pytest.raises(LoadFailed, match=r"input 'x' is tensor\(int4\)\. Cast it"):
        load(tmp_path)
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    outputs = [helper.make_value_info("y", sequence)]
    with pytest.raises(LoadFailed, match=r"output 'y' is seq\(tensor\(float\)\)\. Only tensors"):
        load(write(tmp_path, [node], [value("x", FLOAT, [2])], outputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sesion": {}}, r"unknown option 'sesion'\. Did you mean 'session'"),
        ({"session": []}, "options.session must be keys and values"),
        ({"session": {"intra_op_threads": 1}}, "Did you mean 'intra_op_num_threads'"),
        ({"session": {"intra_op_num_threads": "2"}}, "must be a whole number, not '2'"),
        ({"session": {"intra_op_num_threads": True}}, "must be a whole number, not True"),
        ({"session": {"enable_mem_pattern": 1}}, "must be true or false"),
        ({"session": {"logid": 1}}, "must be text"),
        ({"session": {"execution_mode": "PARALLEL"}}, "Did you mean 'ORT_PARALLEL'"),
        ({"session": {"graph_optimization_level": 99}}, "unknown graph_optimization_level 99"),
        ({"session": {"add_provider": 1}}, "unknown session option 'add_provider'"),
        (
            {"session": {"config_entries": {"session.intra_op.allow_spining": "1"}}},
            r"Did you mean 'session\.intra_op\.allow_spinning'",
        ),
        (
            {"session": {"config_entries": {"session.set_denormal_as_zero": None}}},
            "must be text or a number, not None",
        ),
        ({"providers": "CPUExecutionProvider"}, "must be a list of names"),
        ({"providers": []}, "must be a list of names"),
        ({"providers": ["CPUExecutionProvidr"]}, "Did you mean 'CPUExecutionProvider'"),
        ({"providers": [{"CPUExecutionProvider": 1}]}, "must be keys and values"),
        ({"providers": ["CUDAExecutionProvider"]}, "CUDAExecutionProvider cannot be used here"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        load(identity(tmp_path), options=options)


def test_session_options_reach_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **more: seen.append(options) or session(path, options, **more),
    )
    given = {
        "graph_optimization_level": "ORT_ENABLE_BASIC",
        "enable_mem_pattern": False,
        "inter_op_num_threads": 2,
        "config_entries": {"session.intra_op.allow_spinning": True},
    }
    spec = spec_of(identity(tmp_path), options={"session": given})
    spec.threads = 3
    RUNTIME.load(spec)
    (options,) = seen
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert (options.enable_mem_pattern, options.inter_op_num_threads) == (False, 2)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    load(tmp_path)
    assert seen[1].get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_list_that_ends_in_the_cpu_falls_back_with_one_warning(tmp_path: Path) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    warnings: list[str] = []
    spec = spec_of(identity(tmp_path), options={"providers": names})
    spec.warn = warnings.append
    RUNTIME.load(spec)
    assert warnings == [
        "it runs without TensorrtExecutionProvider and CUDAExecutionProvider, "
        "on CPUExecutionProvider"
    ]


def test_a_provider_that_is_lost_in_silence_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"]
    )
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, **more: session(path, options)
    )
    identity(tmp_path)
    with pytest.raises(LoadFailed, match="CUDAExecutionProvider cannot be used here"):
        load(tmp_path, options={"providers": ["CUDAExecutionProvider"]})
    warnings: list[str] = []
    spec = spec_of(tmp_path, options={"providers": everything})
    spec.warn = warnings.append
    RUNTIME.load(spec)
    assert len(warnings) == 1


def test_the_device_is_never_changed_in_silence(tmp_path: Path) -> None:
    identity(tmp_path)
    with pytest.raises(LoadFailed, match="CUDAExecutionProvider cannot be used here"):
        RUNTIME.load(spec_of(tmp_path, device="cuda:1"))
    with pytest.raises(LoadFailed, match="not 'tpu'"):
        RUNTIME.load(spec_of(tmp_path, device="tpu"))


def test_errors_of_input_and_model_are_told_apart(tmp_path: Path) -> None:
    table = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "d")
    gather = helper.make_node("Gather", ["d", "x"], ["y"])
    inputs, outputs = [value("x", TensorProto.INT64, ["n"])], [value("y", FLOAT, ["n"])]
    model = load(write(tmp_path, [gather], inputs, outputs, initializer=[table]))
    with pytest.raises(InvalidInput, match="out of data bounds, idx=7"):
        run(model, {"x": np.array([7])}, "y")
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
    inputs = [value("x", FLOAT, ["n"]), value("s", TensorProto.INT64, [2])]
    model = load(write(tmp_path, [reshape], inputs, [value("y", FLOAT, [None, None])]))
    with pytest.raises(ModelFailed, match="cannot be reshaped") as caught:
        run(model, {"x": np.zeros(5, np.float32), "s": np.array([2, 2])}, "y")
    assert "/" not in caught.value.message
    assert "\n" not in caught.value.message


def endless(path: Path) -> Path:
    """Loops as often as the input says."""
    truth = onnx.numpy_helper.from_array(np.array(True), "truth")
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("a", FLOAT, [1]),
        ],
        [value("d", TensorProto.BOOL, []), value("b", FLOAT, [1])],
    )
    loop = helper.make_node("Loop", ["times", "truth", "x"], ["y"], body=body)
    inputs = [value("times", TensorProto.INT64, []), value("x", FLOAT, [1])]
    return write(path, [loop], inputs, [value("y", FLOAT, [1])], initializer=[truth])


def test_a_running_call_is_cancelled_only_when_all_its_mates_are(tmp_path: Path) -> None:
    model = load(endless(tmp_path))
    inputs = {"times": np.array(2**62), "x": np.ones(1, np.float32)}
    work = work_of(inputs, "y", offsets=(0, 1, 2))
    errors: list[BaseException] = []

    def target() -> None:
        with pytest.raises(Cancelled) as caught:
            model.run(work, no_stream)
        errors.append(caught.value)

    thread = threading.Thread(target=target)
    thread.start()
    while not model._running:
        pass
    model.cancel(work, 0)
    options, _ = model._running[id(work)]
    assert not options.terminate
    model.cancel(work, 1)
    thread.join(30)
    assert len(errors) == 1
    model.cancel(work, 1)


def test_it_runs_beside_others(tmp_path: Path) -> None:
    traits = load(identity(tmp_path)).traits
    assert traits.thread_safe
    assert not traits.holds_gil


def test_only_the_wanted_outputs_are_computed(tmp_path: Path, digits: Any) -> None:
    x, _, classifier = digits
    model = load(save_classifier(tmp_path, classifier, x, False))
    assert list(run(model, {"X": x[:1]}, "probabilities")) == ["probabilities"]
    assert model.signature.methods["predict"].inputs[0].dtype is FP32
    model.close()
