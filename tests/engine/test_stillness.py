from __future__ import annotations

from itertools import accumulate, repeat

from salver.clock import NS_PER_MS
from salver.engine.stillness import STILL_BEATS, Stillness


def beats_until_hung(*used_ms: float) -> int:
    """The beat with which a worker counts as hung that uses so much processor time in each, then
    none; 0 if it still does not when `used_ms` is over for long.
    """
    stillness = Stillness(7 * NS_PER_MS)
    uses = [*used_ms, *repeat(0.0, STILL_BEATS)]
    for number, total in enumerate(accumulate(uses, initial=7.0)):
        if number and stillness.beat(round(total * NS_PER_MS)):
            return number
    return 0


def test_who_neither_answers_nor_computes_is_hung() -> None:
    assert beats_until_hung() == STILL_BEATS


def test_who_computes_is_not() -> None:
    stillness = Stillness(0)
    assert not any(stillness.beat(beat * 1000 * NS_PER_MS) for beat in range(1, 1000))


def test_a_tick_or_two_are_no_sign_of_life() -> None:
    assert beats_until_hung(10, 0, 10) == STILL_BEATS


def test_a_little_in_each_beat_adds_up_to_one() -> None:
    slow = [3] * (3 * STILL_BEATS)
    assert beats_until_hung(*slow) > len(slow)


def test_counting_begins_anew_after_each_sign_of_life() -> None:
    assert beats_until_hung(0, 0, 0, 50) == 4 + STILL_BEATS
