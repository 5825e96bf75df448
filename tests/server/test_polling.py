from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from salver.server.polling import BusyPolling

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 100


class Turns:
    """A loop and a clock: each turn calls what was ready before it, and takes `turn_ns`."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.ready: list[Callable[[], None]] = []
        self.is_busy = False
        loop: Any = self
        self.polling = BusyPolling(WINDOW, lambda: self.is_busy, lambda: self.now, loop)

    def call_soon(self, function: Callable[[], None]) -> None:
        self.ready.append(function)

    def polls(self, turn_ns: int = 10) -> int:
        """How many turns pass until the loop would sleep."""
        turns = 0
        while self.ready:
            due, self.ready = self.ready, []
            for function in due:
                function()
            self.now += turn_ns
            turns += 1
        return turns

    def answer(self, after_ns: int = 0) -> None:
        self.now += after_ns
        self.polling.answered()


@pytest.fixture
def at() -> Turns:
    return Turns()


def test_a_single_answer_lets_the_loop_sleep(at: Turns) -> None:
    at.answer()
    assert at.polls() == 0


def test_answers_in_quick_succession_keep_it_awake_for_the_window(at: Turns) -> None:
    at.answer()
    at.answer(after_ns=WINDOW)
    assert at.polls(turn_ns=10) == WINDOW // 10 + 1


def test_rare_answers_never_do(at: Turns) -> None:
    for _ in range(5):
        at.answer(after_ns=10 * WINDOW)
        assert at.polls() == 0


def test_it_sleeps_while_models_need_the_cores(at: Turns) -> None:
    at.answer()
    at.answer()
    at.is_busy = True
    assert at.polls() == 1


def test_many_answers_in_one_turn_poll_once(at: Turns) -> None:
    for _ in range(5):
        at.answer()
    assert len(at.ready) == 1


def test_a_window_of_nothing_turns_it_off() -> None:
    at = Turns()
    at.polling = BusyPolling(0, lambda: False, lambda: at.now, at)  # type: ignore[arg-type]
    at.answer()
    at.answer()
    assert at.polls() == 0
