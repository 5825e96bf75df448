"""The models that are measured: one computation each, as ONNX, as NumPy and for Triton.

Weights are random with a fixed seed; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

INPUT, OUTPUT = "x", "y"
DECIMALS = 4
"""Of the random inputs: what people send as JSON is seldom longer."""


@dataclass(frozen=True)
class Model:
    """Float32 rows of shape `row` in, `width` numbers per row out."""

    name: str
    row: tuple[int, ...]
    width: int
    build: Callable[[], onnx.ModelProto]

    def save(self, folder: Path) -> Path:
        """Writes `NAME.onnx` unless it is there."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.onnx"
        if not path.exists():
            onnx.save(self.build(), path)
        return path

    def inputs(self, count: int) -> Floats:
        """`count` rows of distinct size, float32 [count, *row]."""
        random = np.random.default_rng(1)
        sizes = random.uniform(0.2, 2, (count, *(1 for _ in self.row)))
        values = random.standard_normal((count, *self.row)) * sizes
        return np.round(values, DECIMALS).astype(np.float32)


class _Graph:
    """Collects nodes and random weights of an ONNX graph."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(2 / np.prod(shape[1:] if len(shape) > 1 else shape))
        values = self.random.standard_normal(shape) * scale
        return self.constant(values.astype(np.float32))

    def constant(self, values: npt.NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def finish(self, last: str, row: tuple[int, ...], width: int) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], [OUTPUT]))
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *row])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", width])],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.checker.check_model(model)
        return model


def tiny_weights() -> Floats:
    """The 4 x 3 matrix of the tiny model."""
    return np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def _tiny() -> onnx.ModelProto:
    g = _Graph()
    logits = g.add("MatMul", INPUT, g.constant(tiny_weights()))
    return g.finish(g.add("Softmax", logits, axis=-1), (4,), 3)


SAMPLE_WIDTH = 3 * 224 * 224
SAMPLE_STEP = 50_175


def _sample() -> onnx.ModelProto:
    """Four numbers from start to end of a large input: what is measured is moving the bytes."""
    g = _Graph()
    starts, ends, axes, steps = (
        g.constant(np.array([v])) for v in (0, SAMPLE_WIDTH, 1, SAMPLE_STEP)
    )
    return g.finish(g.add("Slice", INPUT, starts, ends, axes, steps), (SAMPLE_WIDTH,), 4)


def _perceptron() -> onnx.ModelProto:
    """38 MB of weights: a batch costs little more than one row, as they are read once."""
    g = _Graph()
    hidden = INPUT
    for fan_in, fan_out in ((16, 3072), (3072, 3072)):
        weight = g.weight(fan_out, fan_in)
        hidden = g.add("Relu", g.add("Gemm", hidden, weight, transB=1))
    return g.finish(g.add("Gemm", hidden, g.weight(4, 3072), transB=1), (16,), 4)


def _resnet18() -> onnx.ModelProto:
    """The layers of ResNet-18 (He et al., 2015, table 1), batch normalisation folded in."""
    g = _Graph()

    def convolution(x: str, fan_in: int, fan_out: int, kernel: int, stride: int) -> str:
        pad = kernel // 2
        weight, bias = g.weight(fan_out, fan_in, kernel, kernel), g.weight(fan_out)
        return g.add(
            "Conv", x, weight, bias, pads=[pad] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2
        )

    x = g.add("Relu", convolution(INPUT, 3, 64, 7, 2))
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            shortcut = x if width == channels else convolution(x, channels, width, 1, stride)
            y = g.add("Relu", convolution(x, channels, width, 3, stride))
            x = g.add("Relu", g.add("Add", convolution(y, width, width, 3, 1), shortcut))
            channels = width
    pooled = g.add("Flatten", g.add("GlobalAveragePool", x))
    return g.finish(g.add("Gemm", pooled, g.weight(1000, 512), transB=1), (3, 224, 224), 1000)


TINY = Model("tiny", (4,), 3, _tiny)
SAMPLE = Model("sample", (SAMPLE_WIDTH,), 4, _sample)
PERCEPTRON = Model("perceptron", (16,), 4, _perceptron)
RESNET18 = Model("resnet18", (3, 224, 224), 1000, _resnet18)
MODELS = {model.name: model for model in (TINY, SAMPLE, PERCEPTRON, RESNET18)}
