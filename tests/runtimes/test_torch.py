from __future__ import annotations

import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from salver.config import ModelConfig, TensorOptions
from salver.errors import InvalidInput, LoadFailed, ModelFailed, TrustRequired
from salver.interfaces import LoadSpec
from salver.runtimes.torch import TorchRuntime
from salver.types import BF16, FP32, ModelRef, Work, bf16_bits, bf16_floats

if TYPE_CHECKING:
    from pathlib import Path

    from salver.runtimes.torch import TorchModel
    from salver.types import Tensors

RUNTIME = TorchRuntime()
IMAGE = TensorOptions(name="image", dtype="FP32", shape=(-1, 1, 8, 8))
SOURCE = """
import torch
from layers import Head

class Net(torch.nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.head = Head(4, classes)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))
"""
LAYERS = "import torch\nclass Head(torch.nn.Linear):\n    pass\n"


class Net(torch.nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.head = torch.nn.Linear(4, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


class Pair(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, (a * b).sum()


def script(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path / "model.pt"))
    return path


def export(module: torch.nn.Module, path: Path, inputs: Any, **dynamic: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic or None)
        torch.export.save(program, path / "model.pt2")
    return path


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def spec_of(path: Path, trusted: bool = False, device: str = "cpu", **config: Any) -> LoadSpec:
    return LoadSpec(
        path=path, ref=ModelRef("m"), config=ModelConfig(**config), trusted=trusted, device=device
    )


def load(path: Path, trusted: bool = False, **config: Any) -> TorchModel:
    return RUNTIME.load(spec_of(path, trusted, **config))


def no_stream(index: int, item: Tensors) -> None:
    raise AssertionError("a module does not stream")


def run(model: TorchModel, inputs: dict[str, Any], *outputs: str) -> dict[str, Any]:
    results = model.run(Work("predict", inputs, [0, 1], outputs, [{}]), no_stream)
    return {name: tensor.array() for name, tensor in results.tensors.items()}


def save_as(form: str, net: Net, path: Path) -> dict[str, Any]:
    """Writes the model in one of its forms; returns the configuration that it needs."""
    (path / "mymodel.py").write_text(SOURCE)
    (path / "layers.py").write_text(LAYERS)
    named = {"class_name": "mymodel:Net", "inputs": (IMAGE,)}
    if form == "exported":
        batch = torch.export.Dim("batch", min=1, max=64)
        export(net, path, (torch.zeros(2, 1, 8, 8),), image={0: batch})
        return {}
    if form == "script":
        script(net, path)
        return {"inputs": (IMAGE,)}
    if form == "module":
        torch.save(net, path / "model.pt")
        return {"inputs": (IMAGE,)}
    if form == "safetensors":
        save_file(net.state_dict(), path / "model.safetensors")
    elif form == "legacy":
        torch.save(net.state_dict(), path / "model.pth", _use_new_zipfile_serialization=False)
    else:
        state = {"epoch": 3, "state_dict": net.state_dict()} if form == "checkpoint" else None
        torch.save(state or net.state_dict(), path / "model.pt")
    return named


@pytest.mark.parametrize(
    "form", ["exported", "script", "module", "weights", "checkpoint", "legacy", "safetensors"]
)
def test_every_form_of_a_model_gives_the_same(tmp_path: Path, net: Net, form: str) -> None:
    config = save_as(form, net, tmp_path)
    model = load(tmp_path, trusted=form != "script", **config)
    method = model.signature.methods["predict"]
    assert [(spec.name, spec.dtype, spec.shape) for spec in method.inputs] == [
        ("image", FP32, (-1, 1, 8, 8))
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in method.outputs] == [
        ("output", FP32, (-1, 10))
    ]
    assert method.batching == "rows"
    assert model.traits.thread_safe
    assert method.max_rows == model.traits.max_batch == (64 if form == "exported" else 0)
    images = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    images.flags.writeable = False
    with torch.inference_mode():
        expected = net(torch.from_numpy(images.copy())).numpy()
    np.testing.assert_allclose(run(model, {"image": images}, "output")["output"], expected, 1e-5)
    assert not (tmp_path / "__pycache__").exists()
    model.close()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("exported", "exported program"),
        ("script", ""),
        ("module", "pickled module"),
        ("weights", "mymodel:Net is Python code"),
        ("legacy", "mymodel:Net is Python code"),
        ("safetensors", "mymodel:Net is Python code"),
    ],
)
def test_what_runs_code_needs_trust(tmp_path: Path, net: Net, form: str, reason: str) -> None:
    config = save_as(form, net, tmp_path)
    probe = RUNTIME.probe(tmp_path, ModelConfig(**config))
    assert probe is not None
    assert bool(probe.trust) == bool(reason)
    assert reason in probe.trust
    assert probe.size_bytes > 0
    if reason:
        with pytest.raises(TrustRequired, match=reason):
            load(tmp_path, **config)


@pytest.mark.parametrize("form", ["weights", "legacy", "safetensors"])
def test_weights_without_a_class_are_named(tmp_path: Path, net: Net, form: str) -> None:
    save_as(form, net, tmp_path)
    with pytest.raises(LoadFailed, match="holds weights only") as caught:
        load(tmp_path)
    assert "(4 tensors, first: conv." in caught.value.message
    assert caught.value.message.endswith("Name the class: --class mymodel:Net")


def test_a_class_takes_arguments(tmp_path: Path) -> None:
    config = save_as("weights", Net(classes=3), tmp_path)
    model = load(tmp_path, trusted=True, options={"arguments": {"classes": 3}}, **config)
    assert model.signature.methods["predict"].outputs[0].shape == (-1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "mymodel"}, "must be module:Class"),
        ({"class_name": "nothere:Net"}, "No module named 'nothere'"),
        ({"class_name": "mymodel:Nett"}, "has no attribute 'Nett'"),
        ({"options": {"argument": {}}}, r"unknown option 'argument'\. Did you mean 'arguments'"),
        ({"options": {"arguments": {"classes": 3}}}, "size mismatch for head"),
        ({"options": {"arguments": {"colour": 3}}}, "unexpected keyword argument 'colour'"),
        (
            {
                "class_name": "layers:Head",
                "options": {"arguments": {"in_features": 1, "out_features": 1}},
            },
            "2 missing keys, first: weight; 4 unexpected keys, first: conv.weight",
        ),
    ],
)
def test_what_does_not_fit_the_weights_is_refused(
    tmp_path: Path, net: Net, change: Any, message: str
) -> None:
    config = save_as("weights", net, tmp_path) | change
    with pytest.raises(LoadFailed, match=message):
        load(tmp_path, trusted=True, **config)


def test_two_versions_bring_their_own_class(tmp_path: Path, net: Net) -> None:
    shapes = []
    for classes in (2, 5):
        folder = tmp_path / str(classes)
        folder.mkdir()
        config = save_as("weights", Net(classes), folder)
        (folder / "mymodel.py").write_text(SOURCE.replace("classes=10", f"classes={classes}"))
        model = load(folder, trusted=True, **config)
        shapes.append(model.signature.methods["predict"].outputs[0].shape)
    assert shapes == [(-1, 2), (-1, 5)]


def test_unknown_inputs_are_asked_for_with_a_snippet(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    asked = r"file: model.pt\ninputs:\n  - \{name: image, dtype: FP32, shape:"
    with pytest.raises(LoadFailed, match=asked):
        load(tmp_path / "model.pt")
    with pytest.raises(LoadFailed, match="'image': PyTorch has no tensors of BYTES"):
        load(tmp_path, inputs=(TensorOptions(name="image", dtype="BYTES", shape=(-1,)),))


def test_a_trial_that_fails_says_how(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    wrong = TensorOptions(name="image", dtype="FP32", shape=(-1, 3, -1, 8))
    with pytest.raises(LoadFailed, match=r"image \[1, 3, 32, 8\] failed: .*1 channels, but got 3"):
        load(tmp_path, inputs=(wrong,))


def test_an_example_tells_the_inputs(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    method = load(tmp_path, example=np.zeros((1, 1, 8, 8)).tolist()).signature.methods["predict"]
    assert (method.inputs[0].shape, method.batching) == ((-1, 1, 8, 8), "rows")
    script(Pair(), tmp_path)
    method = load(tmp_path, example={"a": [1, 2], "b": [3, 4]}).signature.methods["predict"]
    assert [(spec.name, spec.shape) for spec in method.inputs] == [("a", (2,)), ("b", (2,))]
    assert method.batching == "single"


@pytest.mark.parametrize("names", [("a", "b"), ("INPUT__0", "INPUT__1")])
def test_inputs_go_by_name_or_by_order(tmp_path: Path, names: tuple[str, str]) -> None:
    script(Pair(), tmp_path)
    inputs = tuple(TensorOptions(name=name, dtype="INT64", shape=(-1, 2)) for name in names)
    model = load(tmp_path, inputs=inputs)
    method = model.signature.methods["predict"]
    assert [(spec.name, spec.shape) for spec in method.outputs] == [
        ("output_0", (-1, 2)),
        ("output_1", ()),
    ]
    assert method.batching == "single"
    feed = {names[0]: np.array([[1, 2]]), names[1]: np.array([[3, 4]])}
    got = run(model, feed, "output_1", "output_0")
    assert list(got) == ["output_1", "output_0"]
    assert got["output_0"].tolist() == [[4, 6]]
    assert got["output_1"].tolist() == 11


def test_a_misspelt_argument_is_found(tmp_path: Path) -> None:
    script(Pair(), tmp_path)
    inputs = tuple(TensorOptions(name=name, dtype="FP32", shape=(2,)) for name in ("a", "bb"))
    with pytest.raises(LoadFailed, match=r"unknown input 'bb'\. Did you mean 'b'"):
        load(tmp_path, inputs=inputs)


def test_configured_outputs_give_names(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    logits = TensorOptions(name="logits", dtype="FP32", shape=(-1, 10))
    model = load(tmp_path, inputs=(IMAGE,), outputs=(logits,), labels=tuple("0123456789"))
    (output,) = model.signature.methods["predict"].outputs
    assert (output.name, output.labels[:2]) == ("logits", ("0", "1"))
    image = np.zeros((1, 1, 8, 8), np.float32)
    assert run(model, {"image": image}, "logits")["logits"].shape == (1, 10)
    with pytest.raises(LoadFailed, match="the model gives 1 outputs, `outputs:` names 2"):
        load(tmp_path, inputs=(IMAGE,), outputs=(logits, logits))


def test_a_dictionary_gives_its_keys(tmp_path: Path) -> None:
    class Keys(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"twice": x + x, "sign": x > 0}

    any_dim = torch.export.Dim.AUTO
    model = load(export(Keys(), tmp_path, (torch.zeros(3, 2),), x={0: any_dim}), trusted=True)
    method = model.signature.methods["predict"]
    assert [(s.name, s.dtype.name, s.shape) for s in method.outputs] == [
        ("twice", "FP32", (-1, 2)),
        ("sign", "BOOL", (-1, 2)),
    ]
    assert (method.batching, method.max_rows) == ("rows", 0)
    got = run(model, {"x": np.array([[1, -1]], np.float32)}, "sign")
    assert got["sign"].tolist() == [[True, False]]


def test_inputs_of_a_program_can_be_renamed(tmp_path: Path) -> None:
    export(Pair(), tmp_path, (torch.zeros(3), torch.zeros(3)))
    names = ["INPUT__0", "INPUT__1"]
    inputs = [TensorOptions(name=name, dtype="FP32", shape=(3,)) for name in (*names, "aa", "b")]
    model = load(tmp_path, trusted=True, inputs=tuple(inputs[:2]))
    assert [spec.name for spec in model.signature.methods["predict"].inputs] == names
    feed = {name: np.full(3, n + 2, np.float32) for n, name in enumerate(names)}
    assert run(model, feed, "output_1")["output_1"].tolist() == 18
    with pytest.raises(LoadFailed, match=r"unknown input 'aa'\. Did you mean 'a'"):
        load(tmp_path, trusted=True, inputs=tuple(inputs[2:]))


def test_values_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    class Complex(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.complex(x, x)

    export(Complex(), tmp_path, (torch.zeros(3),))
    with pytest.raises(LoadFailed, match=r"output 'output' is torch\.complex64"):
        load(tmp_path, trusted=True)


def test_a_program_of_one_row_takes_rows_singly(tmp_path: Path) -> None:
    example = (torch.zeros(1, 4),)
    model = load(export(torch.nn.Linear(4, 3), tmp_path, example), trusted=True)
    method = model.signature.methods["predict"]
    assert (method.batching, method.max_rows, model.traits.max_batch) == ("rows", 1, 1)
    assert [spec.shape for spec in (*method.inputs, *method.outputs)] == [(1, 4), (1, 3)]


def test_a_program_with_fixed_shapes_is_not_batched(tmp_path: Path) -> None:
    model = load(export(Pair(), tmp_path, (torch.zeros(3), torch.zeros(3))), trusted=True)
    method = model.signature.methods["predict"]
    assert method.batching == "single"
    assert [spec.shape for spec in (*method.inputs, *method.outputs)] == [(3,), (3,), (3,), ()]
    with pytest.raises(InvalidInput, match="Guard failed"):
        run(model, {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}, "output_0")


@pytest.mark.parametrize(
    "name",
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
     "BF16", "FP32", "FP64"],
)  # fmt: skip
def test_every_data_type_passes(tmp_path: Path, name: str) -> None:
    script(torch.nn.Identity(), tmp_path)
    model = load(tmp_path, inputs=(TensorOptions(name="input", dtype=name, shape=(-1, 2)),))
    (output,) = model.signature.methods["predict"].outputs
    assert output.dtype.name == name
    sent = np.array([[0, 1], [1, 1]]).astype(output.dtype.numpy)
    got = run(model, {"input": sent}, "output")["output"]
    assert got.dtype == sent.dtype
    assert got.tolist() == sent.tolist()


def test_bfloat16_is_computed_with(tmp_path: Path) -> None:
    script(Pair(), tmp_path)
    inputs = tuple(TensorOptions(name=name, dtype="BF16", shape=(-1,)) for name in "ab")
    model = load(tmp_path, inputs=inputs)
    assert model.signature.methods["predict"].outputs[0].dtype is BF16
    feed = {name: bf16_bits(np.array([1.5, 2], np.float32)) for name in "ab"}
    assert bf16_floats(run(model, feed, "output_0")["output_0"]).tolist() == [3, 4]


def test_a_module_that_works_in_place_leaves_received_data_alone(tmp_path: Path) -> None:
    script(torch.nn.ReLU(inplace=True), tmp_path)
    model = load(tmp_path, inputs=(TensorOptions(name="input", dtype="FP32", shape=(-1,)),))
    sent = np.frombuffer(np.array([-1, 1], np.float32).tobytes(), np.float32)
    assert run(model, {"input": sent}, "output")["output"].tolist() == [0, 1]
    assert sent.tolist() == [-1, 1]


def test_errors_are_short_and_blame_the_right_side(tmp_path: Path) -> None:
    script(torch.nn.Embedding(5, 2), tmp_path)
    model = load(tmp_path, inputs=(TensorOptions(name="input", dtype="INT64", shape=(-1,)),))
    with pytest.raises(InvalidInput, match="index out of range"):
        run(model, {"input": np.array([7])}, "output")
    script(Pair(), tmp_path)
    inputs = tuple(TensorOptions(name=name, dtype="FP32", shape=(-1,)) for name in "ab")
    with pytest.raises(ModelFailed, match="must match the size") as caught:
        run(
            load(tmp_path, inputs=inputs),
            {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)},
            "output_0",
        )
    assert "/" not in caught.value.message
    assert "\n" not in caught.value.message


def test_running_out_of_memory_names_a_remedy(tmp_path: Path) -> None:
    class Large(torch.nn.Module):
        def forward(self, size: torch.Tensor) -> torch.Tensor:
            return torch.empty(int(size), dtype=torch.uint8)

    script(Large(), tmp_path)
    model = load(tmp_path, inputs=(TensorOptions(name="size", dtype="INT64", shape=()),))
    with pytest.raises(ModelFailed, match=r"out of memory on cpu: .*batching\.max_size"):
        run(model, {"size": np.array(2**60)}, "output")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is meant")
def test_a_missing_device_is_refused(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    with pytest.raises(LoadFailed, match="sees 0 CUDA devices"):
        RUNTIME.load(spec_of(tmp_path, device="cuda", inputs=(IMAGE,)))
    with pytest.raises(LoadFailed, match="not 'tpu'"):
        RUNTIME.load(spec_of(tmp_path, device="tpu", inputs=(IMAGE,)))


def test_threads_are_those_of_the_load(tmp_path: Path, net: Net) -> None:
    script(net, tmp_path)
    before = torch.get_num_threads()
    try:
        spec = spec_of(tmp_path, inputs=(IMAGE,))
        spec.threads = 1
        RUNTIME.load(spec)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_files_of_others_are_not_ours(tmp_path: Path, net: Net) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x00\x01")
    assert RUNTIME.probe(tmp_path, ModelConfig()) is None
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert RUNTIME.probe(tmp_path, ModelConfig()) is not None
    (tmp_path / "config.json").write_text("{}")
    assert RUNTIME.probe(tmp_path, ModelConfig()) is None


def test_broken_archives_are_refused(tmp_path: Path, net: Net) -> None:
    file = script(net, tmp_path) / "model.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[4000:])
    with pytest.raises(LoadFailed, match=r"model\.pt: "):
        load(tmp_path, inputs=(IMAGE,))
    file.write_bytes(whole.replace(b"PK\1\2", b"PK\0\0"))
    assert RUNTIME.probe(tmp_path, ModelConfig()) is None
    with pytest.raises(LoadFailed, match="no PyTorch model here"):
        load(tmp_path)


def test_a_program_compiled_for_one_machine_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/x.so", b"")
    with pytest.raises(LoadFailed, match=r"torch\.export\.save"):
        load(tmp_path)
