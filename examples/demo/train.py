"""Trains the demo's models into a repository: `python train.py FOLDER`. What exists is kept."""

from __future__ import annotations

import shutil
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.ndimage import affine_transform
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from strokes import drawn_digits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]

HERE = Path(__file__).parent
SEED = 7
COLUMNS = {
    "age": "age", "sex": "sex", "bmi": "bmi", "bp": "blood_pressure", "s1": "cholesterol",
    "s2": "ldl", "s3": "hdl", "s4": "cholesterol_ratio", "s5": "log_triglycerides",
    "s6": "glucose",
}  # fmt: skip


@cache
def scans() -> tuple[Array, Array, Array, Array]:
    """The classic scanned digits: training values [n, 64], test values, and their labels."""
    digits = load_digits()
    values = digits.data.astype(np.float32)
    split = train_test_split(values, digits.target, test_size=0.2, random_state=SEED)
    return split[0], split[1], split[2], split[3]


@cache
def drawn(purpose: str) -> tuple[Array, Array]:
    """Drawn digits for training, or others to test on."""
    return drawn_digits(8000, SEED) if purpose == "train" else drawn_digits(1000, SEED + 1)


@cache
def training_data() -> tuple[Array, Array]:
    """Scans, shaken copies of them and drawn digits, with noise: values [n, 64], labels [n]."""
    rng = np.random.default_rng(SEED)
    values, _, labels, _ = scans()
    shaken = [np.stack([_shake(row.reshape(8, 8), rng) for row in values]) for _ in range(2)]
    drawings, drawn_labels = drawn("train")
    x = np.concatenate([values, *shaken, drawings])
    y = np.concatenate([labels, labels, labels, drawn_labels])
    x = np.clip(x + rng.normal(0, 0.4, x.shape) * (rng.random((len(x), 1)) < 0.5), 0, 16)
    order = rng.permutation(len(x))
    return x[order].astype(np.float32), y[order]


def _shake(cells: Array, rng: np.random.Generator) -> Array:
    """Shifts by parts of a cell and tilts a little."""
    matrix = np.eye(2) + rng.normal(0, 0.06, (2, 2))
    offset = 3.5 - matrix @ np.full(2, 3.5) + rng.normal(0, 0.35, 2)
    return affine_transform(cells, matrix, offset, order=1).ravel()


def train_sklearn(path: Path) -> Callable[[Array], Array]:
    import joblib
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    network = MLPClassifier((128,), max_iter=25, learning_rate_init=3e-3, random_state=SEED)
    model = make_pipeline(MaxAbsScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*training_data())
    joblib.dump(model, path)
    return model.predict


def train_onnx(path: Path) -> Callable[[Array], Array]:
    """The same network as digits-sklearn, converted."""
    import joblib
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = joblib.load(path.parents[2] / "digits-sklearn" / "1" / "model.joblib")
    converted = to_onnx(
        model,
        initial_types=[("input", FloatTensorType([None, 64]))],
        options={id(model): {"zipmap": False}},
    )
    path.write_bytes(converted.SerializeToString())
    session = onnxruntime.InferenceSession(path)
    return lambda values: np.asarray(session.run(["label"], {"input": values})[0])


def train_xgboost(path: Path) -> Callable[[Array], Array]:
    from xgboost import XGBClassifier

    model = XGBClassifier(
        n_estimators=70, max_depth=5, learning_rate=0.3, max_bin=17, random_state=SEED
    )
    model.fit(*training_data())
    model.save_model(path)
    return model.predict


def train_torch(path: Path) -> Callable[[Array], Array]:
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    x, y = (torch.from_numpy(part) for part in training_data())
    epochs, size = 6, 128
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 5e-3, total_steps=epochs * -(-len(x) // size)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows] / 16), y[rows]).backward()
            optimizer.step()
            schedule.step()
    first = model[1]
    first.weight.data /= 16  # so that the saved model takes the values 0 to 16 as they are
    served = nn.Sequential(model, nn.Softmax(1)).eval()
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(
        served, (x[:2].clone(),), dynamic_shapes=({0: rows},), strict=False
    )
    torch.export.save(program, path)

    def predict(values: Array) -> Array:
        with torch.inference_mode():
            return served(torch.from_numpy(values)).argmax(1).numpy()

    return predict


def train_lightgbm(path: Path) -> Callable[[Array], Array]:
    import lightgbm

    frame, target = load_diabetes(scaled=False, as_frame=True, return_X_y=True)
    frame = frame.rename(columns=COLUMNS)
    rng = np.random.default_rng(SEED)
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    parameters = {
        "objective": "regression", "learning_rate": 0.05, "num_leaves": 8,
        "min_data_in_leaf": 15, "feature_fraction": 0.6, "verbose": -1, "seed": SEED,
    }  # fmt: skip
    booster = lightgbm.train(parameters, lightgbm.Dataset(frame, target), 120)
    booster.save_model(path)
    return booster.predict


def test_values() -> tuple[Array, Array]:
    return scans()[1], drawn("test")[0]


def accuracy(predict: Callable[[Array], Array]) -> tuple[float, float]:
    """Share of scanned and of drawn digits, none of them trained on, that are read rightly."""
    scanned, drawings = test_values()
    return (
        float(np.mean(predict(scanned) == scans()[3])),
        float(np.mean(predict(drawings) == drawn("test")[1])),
    )


STEPS: dict[str, tuple[str, Callable[[Path], Callable[[Array], Array]]]] = {
    "digits-sklearn": ("model.joblib", train_sklearn),
    "digits-onnx": ("model.onnx", train_onnx),
    "digits-xgboost": ("model.ubj", train_xgboost),
    "digits-torch": ("model.pt2", train_torch),
    "diabetes": ("model.txt", train_lightgbm),
}


def main(folder: Path) -> None:
    console = Console()
    shutil.copytree(HERE / "templates", folder, dirs_exist_ok=True)
    table = Table("model", "scanned digits", "drawn digits")
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for name, (file, train) in STEPS.items():
            path = folder / name / "1" / file
            if path.exists():
                console.print(f"{name}: exists")
                continue
            task = progress.add_task(name, total=1)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"unfinished-{file}")
            predict = train(unfinished)
            unfinished.rename(path)
            if name.startswith("digits"):
                table.add_row(name, *(f"{share:.1%}" for share in accuracy(predict)))
            progress.update(task, completed=1)
    if table.rows:
        console.print(table)
    console.print(f"Serve them: [bold]salver serve {folder} --trust[/]")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python train.py FOLDER")
    main(Path(sys.argv[1]))
