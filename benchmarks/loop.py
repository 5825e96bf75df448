"""A bare ONNX Runtime loop, the most a server could reach: `python -m benchmarks.loop`.

Arguments: model file, rows per run, seconds. Prints rows per second.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime as ort


def main(path: str, rows: int, seconds: float) -> None:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, *entry.shape[1:])).astype(np.float32)
    session.run(None, {entry.name: x})
    runs, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        session.run(None, {entry.name: x})
        runs += 1
    print(runs * rows / elapsed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
