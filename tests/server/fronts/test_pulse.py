from __future__ import annotations

import pytest

from salver.server.fronts.pulse import SILENT_BEATS, SILENT_LOADING_BEATS, Pulse


def beats_until_lost(pulse: Pulse, *, is_loading: bool) -> int:
    for number in range(1, 1000):
        pulse.beat(is_loading=is_loading)
        if pulse.is_lost:
            return number
    raise AssertionError("never")


def test_who_answers_is_asked_again_and_never_lost() -> None:
    pulse = Pulse()
    for _ in range(3 * SILENT_BEATS):
        assert pulse.beat(is_loading=False)
        assert not pulse.is_lost
        pulse.heard()


def test_who_is_silent_is_asked_once_and_lost_once() -> None:
    pulse = Pulse()
    found = [(pulse.beat(is_loading=False), pulse.is_lost) for _ in range(2 * SILENT_BEATS)]
    assert [index for index, (asked, _) in enumerate(found) if asked] == [0]
    assert [index for index, (_, is_lost) in enumerate(found) if is_lost] == [SILENT_BEATS]


@pytest.mark.parametrize(
    ("is_loading", "limit"), [(False, SILENT_BEATS), (True, SILENT_LOADING_BEATS)]
)
def test_loading_may_take_longer(is_loading: bool, limit: int) -> None:
    assert beats_until_lost(Pulse(), is_loading=is_loading) == limit + 1


def test_a_load_that_is_wanted_of_a_silent_front_gives_it_no_more_time() -> None:
    pulse = Pulse()
    assert pulse.beat(is_loading=False)
    assert beats_until_lost(pulse, is_loading=True) == SILENT_BEATS


def test_a_sign_begins_the_count_anew() -> None:
    pulse = Pulse()
    for _ in range(SILENT_BEATS):
        pulse.beat(is_loading=False)
    pulse.heard()
    assert beats_until_lost(pulse, is_loading=False) == SILENT_BEATS + 1
