"""Models that the clients of these tests call."""

from __future__ import annotations

TOY = """
from collections.abc import Iterator
import salver

class Toy:
    def predict(self, x: salver.Array["float32", "B", 3]) -> salver.Array["float32", "B"]:
        return x.sum(axis=1)

    def count(self, upto: int) -> Iterator[int]:
        for i in range(upto):
            if i == 5:
                raise salver.InvalidInput("no further than five")
            yield i

    def pairs(self, text: str) -> Iterator[dict]:
        for letter in text:
            yield {"letter": letter}

    def shout(self, text: str) -> str:
        return text.upper()

    def swap(self, pairs: dict, twice: bool = False) -> dict:
        return pairs if twice else {str(value): key for key, value in pairs.items()}
"""
WORDS = """
import numpy as np
import salver

@salver.model
def words(
    text: salver.Array["str", "B"], times: salver.Array["int64", "B"]
) -> salver.Array["str", "B"]:
    return np.array([t * n for t, n in zip(text, times)], object)
"""
