"""Reads a digit from a picture: prepares it, asks another model and puts the answer in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

import salver


class DigitReader:
    """Takes a picture of one digit, dark on light or light on dark, of any size."""

    def __init__(self) -> None:
        self.digits = salver.use("digits-onnx")

    def predict(self, image: salver.Image) -> dict[str, Any]:
        values = prepare(image)
        if not values.any():
            return {"label": "", "text": "There is nothing on this picture."}
        answer = self.digits.predict(input=values[None])
        shares = np.asarray(answer["probabilities"])[0]
        best, second = np.argsort(shares)[:-3:-1]
        text = f"This is a {best}, {shares[best]:.0%} sure."
        if shares[best] < 0.8:
            text = f"Probably a {best} ({shares[best]:.0%}), perhaps a {second}."
        return {"label": str(best), "confidence": float(shares[best]), "text": text}


def prepare(image: Image.Image) -> np.ndarray:
    """The digit cut out, centred and averaged to 8x8: 64 values, 0 for paper to 16 for ink."""
    grey = image.convert("L")
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if np.median(border) > 127:
        grey = ImageOps.invert(grey)
    ink = ImageOps.autocontrast(grey, cutoff=(25, 1)).point(lambda value: max(0, 2 * value - 255))
    box = ink.getbbox()
    if box is None:
        return np.zeros(64, np.float32)
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    square = Image.new("L", (side, side))
    square.paste(ink.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
    cells = np.asarray(square.resize((8, 8), Image.Resampling.BOX), np.float32)
    return cells.ravel() * np.float32(16 / 255)
