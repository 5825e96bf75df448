"""Trains a small network and saves it as a versioned model folder: `train.py my_model`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LinearRegression

WEIGHTS = np.array([0.5, -1.0, 2.0, 0.25])


def train() -> LinearRegression:
    """A regression that finds the weights again."""
    inputs = np.random.default_rng(0).normal(size=(100, 4))
    return LinearRegression().fit(inputs, inputs @ WEIGHTS + 3.0)


def save(model: LinearRegression, folder: Path, *, as_sklearn: bool) -> None:
    """Writes version 1 of a model."""
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    if as_sklearn:
        import skops.io

        skops.io.dump(model, version / "model.skops")
        return
    from skl2onnx import to_onnx

    onnx = to_onnx(model, np.zeros((1, 4), np.float32))
    (version / "model.onnx").write_bytes(onnx.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sklearn", action="store_true", help="keep scikit-learn's own format")
    given = parser.parse_args()
    save(train(), given.folder, as_sklearn=given.sklearn)


if __name__ == "__main__":
    main()
