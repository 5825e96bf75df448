from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from salver.config import ModelConfig, read

if TYPE_CHECKING:
    from types import ModuleType

pytest.importorskip("PIL")
from PIL import Image, ImageOps

DEMO = Path(__file__).parents[2] / "examples" / "demo"
TEMPLATES = sorted(DEMO.glob("templates/*/model.yaml"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


strokes = load(DEMO / "strokes.py")
reader = load(DEMO / "templates" / "digits-python" / "1" / "model.py")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_settings_are_valid(path: Path) -> None:
    config = read(path, ModelConfig)
    assert config.description
    assert config.tags
    assert len(config.labels) in (0, 10)


def test_examples_fit_their_models() -> None:
    digits = read(DEMO / "templates/digits-onnx/model.yaml", ModelConfig)
    table = read(DEMO / "templates/diabetes/model.yaml", ModelConfig)
    assert len(digits.example) == 64
    assert tuple(table.example) == table.columns
    header = (DEMO / "patients.csv").read_text().partition("\n")[0]
    assert tuple(header.split(",")) == table.columns


def test_a_drawing_is_cut_out_and_averaged() -> None:
    canvas = Image.new("L", (100, 100))
    canvas.paste(255, (50, 10, 66, 74))  # a bar of 16 x 64
    values = strokes.reduce(canvas).reshape(8, 8)
    assert (values[:, 3:5] == 16).all()
    assert values.sum() == 16 * 16


def test_an_empty_drawing_is_all_paper() -> None:
    assert not strokes.reduce(Image.new("L", (50, 50))).any()


@pytest.mark.parametrize("digit", range(10))
def test_the_reader_sees_dark_on_light_as_light_on_dark(digit: int) -> None:
    image = strokes.draw(digit, np.random.default_rng(digit))
    light, dark = reader.prepare(image), reader.prepare(ImageOps.invert(image))
    np.testing.assert_array_equal(light, dark)
    np.testing.assert_allclose(light, strokes.reduce(image), atol=0.1)


def test_the_picture_of_the_readme_is_one_digit() -> None:
    with Image.open(DEMO / "digit.png") as picture:
        values = reader.prepare(picture.convert("RGB"))
    assert values.shape == (64,)
    assert 0 <= values.min() < 1 < 12 < values.max() <= 16


def test_drawn_digits_come_in_equal_numbers() -> None:
    values, labels = strokes.drawn_digits(20, seed=1)
    assert values.shape == (20, 64)
    assert np.bincount(labels).tolist() == [2] * 10


UNTRAINED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import demo
demo.MODELS, demo.train = Path(sys.argv.pop(1)), lambda folder: None
sys.exit(demo.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", UNTRAINED, str(DEMO), str(tmp_path), "--port", "0"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert demo.stdout is not None
    with demo.stdout as lines:
        port = next(found[1] for line in lines if (found := re.search(r"Open \S+:(\d+)", line)))
        demo.send_signal(number)
        assert demo.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
