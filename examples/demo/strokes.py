"""Digits as a hand draws them with a mouse: the strokes of each figure, bent and scaled at random.

The classic 8x8 digits are scans of pen on paper. Adding drawn ones to the training data is what
makes the models read the canvas of the page as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Stroke = Sequence[tuple[float, float]]

CANVAS = 96
"""Pixels along a side of the canvas on which a digit is drawn before it is reduced."""

_RING: Stroke = [
    (0.55, 0), (0.22, 0.15), (0.1, 0.5), (0.22, 0.87), (0.5, 1), (0.8, 0.87), (0.9, 0.5),
    (0.8, 0.15), (0.5, 0),
]  # fmt: skip
_KNOT: Stroke = [
    (0.78, 0.12), (0.5, 0), (0.24, 0.12), (0.28, 0.34), (0.5, 0.48), (0.78, 0.68), (0.76, 0.9),
    (0.5, 1), (0.24, 0.9), (0.22, 0.68), (0.5, 0.48), (0.74, 0.33), (0.78, 0.12),
]  # fmt: skip
_HEAD: Stroke = [
    (0.8, 0.2), (0.5, 0), (0.2, 0.14), (0.18, 0.4), (0.48, 0.53), (0.76, 0.36), (0.8, 0.18),
]  # fmt: skip

# Ways to write each digit: control points of its strokes, x to the right and y down, in 0..1.
WAYS: dict[int, list[list[Stroke]]] = {
    0: [[_RING]],
    1: [
        [[(0.5, 0), (0.5, 0.5), (0.5, 1)]],
        [[(0.28, 0.25), (0.52, 0)], [(0.52, 0), (0.5, 0.5), (0.5, 1)]],
        [[(0.2, 0.35), (0.55, 0)], [(0.55, 0), (0.55, 0.5), (0.55, 1)]],
        [[(0.3, 0.2), (0.5, 0)], [(0.5, 0), (0.5, 1)], [(0.1, 1), (0.9, 1)]],
    ],
    2: [
        [
            [(0.15, 0.25), (0.3, 0.05), (0.6, 0), (0.8, 0.2), (0.7, 0.5), (0.42, 0.75), (0.12, 1)],
            [(0.12, 1), (0.5, 0.98), (0.88, 1)],
        ],
        [
            [(0.15, 0.2), (0.45, 0), (0.78, 0.18), (0.65, 0.55), (0.3, 0.95), (0.12, 0.9),
             (0.22, 0.74), (0.5, 0.9), (0.9, 0.97)]
        ],
    ],
    3: [
        [
            [(0.15, 0.12), (0.5, 0), (0.8, 0.18), (0.72, 0.38), (0.42, 0.48)],
            [(0.42, 0.48), (0.78, 0.6), (0.85, 0.82), (0.5, 1), (0.12, 0.9)],
        ],
        [
            [(0.15, 0), (0.82, 0)],
            [(0.82, 0), (0.45, 0.4)],
            [(0.45, 0.4), (0.82, 0.55), (0.82, 0.85), (0.45, 1), (0.12, 0.88)],
        ],
    ],
    4: [
        [[(0.3, 0), (0.12, 0.6)], [(0.12, 0.6), (0.92, 0.6)], [(0.66, 0.25), (0.66, 1)]],
        [[(0.66, 0), (0.08, 0.66)], [(0.08, 0.66), (0.92, 0.66)], [(0.66, 0), (0.66, 1)]],
        [[(0.2, 0), (0.16, 0.55)], [(0.16, 0.55), (0.85, 0.5)], [(0.8, 0), (0.72, 1)]],
    ],
    5: [
        [
            [(0.82, 0), (0.25, 0)],
            [(0.25, 0), (0.2, 0.45)],
            [(0.2, 0.45), (0.5, 0.38), (0.8, 0.5), (0.82, 0.8), (0.5, 1), (0.14, 0.9)],
        ],
        [
            [(0.85, 0.02), (0.5, 0), (0.25, 0.08), (0.25, 0.4), (0.6, 0.45), (0.82, 0.65),
             (0.72, 0.92), (0.42, 1), (0.14, 0.92)]
        ],
    ],
    6: [
        [
            [(0.72, 0), (0.36, 0.22), (0.14, 0.6), (0.24, 0.92), (0.52, 1), (0.82, 0.88),
             (0.82, 0.64), (0.52, 0.52), (0.2, 0.72)]
        ],
        [
            [(0.68, 0.04), (0.3, 0.08), (0.1, 0.45), (0.16, 0.85), (0.5, 1), (0.88, 0.84),
             (0.86, 0.48), (0.5, 0.36), (0.14, 0.56)]
        ],
        [
            [(0.4, 0), (0.18, 0.4), (0.14, 0.75), (0.3, 0.98), (0.64, 1), (0.82, 0.8),
             (0.68, 0.58), (0.4, 0.58), (0.18, 0.76)]
        ],
    ],
    7: [
        [[(0.1, 0.02), (0.88, 0)], [(0.88, 0), (0.6, 0.45), (0.4, 1)]],
        [[(0.1, 0), (0.88, 0)], [(0.88, 0), (0.4, 1)], [(0.28, 0.5), (0.78, 0.5)]],
        [[(0.1, 0.15), (0.14, 0.02)], [(0.14, 0.02), (0.85, 0.02)], [(0.85, 0.02), (0.5, 1)]],
    ],
    8: [
        [_KNOT],
        [
            [(0.5, 0), (0.24, 0.1), (0.26, 0.38), (0.5, 0.47), (0.74, 0.38), (0.76, 0.1), (0.5, 0)],
            [(0.5, 0.47), (0.2, 0.62), (0.2, 0.9), (0.5, 1), (0.8, 0.9), (0.8, 0.62), (0.5, 0.47)],
        ],
    ],
    9: [
        [_HEAD, [(0.8, 0.18), (0.78, 0.6), (0.58, 1)]],
        [_HEAD, [(0.8, 0.1), (0.8, 1)]],
        [_HEAD, [(0.8, 0.18), (0.82, 0.7), (0.55, 1), (0.2, 0.92)]],
    ],
}  # fmt: skip


def _smooth(points: Array, steps: int = 8) -> Array:
    """A Catmull-Rom curve through `points`, [n, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps)[:, None]
    parts = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        bend = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
        parts.append(0.5 * (2 * b + (c - a) * t + bend))
    return np.concatenate(parts)


def draw(digit: int, rng: np.random.Generator, size: int = CANVAS) -> Image.Image:
    """One digit, white on black, `size` x `size`: some way to write it, tilted, bent, any pen."""
    ways = WAYS[digit]
    strokes = ways[rng.integers(len(ways))]
    angle, shear = rng.normal(0, 0.1), rng.normal(0, 0.16)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scale = np.diag([rng.uniform(0.5, 1.05), 1.0])
    matrix = 0.62 * size * turn @ np.array([[1, -shear], [0, 1]]) @ scale
    pen = max(2, round(rng.uniform(0.06, 0.17) * size))
    image = Image.new("L", (size, size))
    canvas = ImageDraw.Draw(image)
    for stroke in strokes:
        points = np.array(stroke, float) - 0.5
        points += rng.normal(0, 0.032, points.shape)
        line = [tuple(point) for point in _smooth(points) @ matrix.T + size / 2]
        canvas.line(line, fill=255, width=pen, joint="curve")
        for x, y in line[:: len(line) - 1]:
            canvas.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return image


def reduce(image: Image.Image) -> Array:
    """An image of a light digit on black as 64 values 0 to 16: cut out, centred, averaged to 8x8.

    This is how the page reduces its canvas, and how the data set was made: the digit fills the
    height, and each value is the ink in its cell.
    """
    box = image.getbbox() or (0, 0, *image.size)
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    square = Image.new("L", (side, side))
    square.paste(image.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
    cells = np.asarray(square.resize((8, 8), Image.Resampling.BOX), np.float32)
    return cells.ravel() * (16 / 255)


def drawn_digits(count: int, seed: int) -> tuple[Array, Array]:
    """`count` drawn digits as values [count, 64] and their labels [count]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    return np.stack([reduce(draw(int(label), rng)) for label in labels]), labels
