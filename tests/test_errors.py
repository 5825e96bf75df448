from __future__ import annotations

from salver.errors import InvalidInput, did_you_mean, listed

MANY = [f"model_{i}" for i in range(1000)] + ["other"]


def test_the_nearest_name_is_proposed() -> None:
    assert did_you_mean("modle", ["model", "other"]) == " Did you mean 'model'?"
    assert did_you_mean("zebra", ["model", "other"]) == ""


def test_many_names_are_compared_only_if_they_begin_alike() -> None:
    assert did_you_mean("othr", MANY) == " Did you mean 'other'?"
    assert did_you_mean("zther", MANY) == ""


def test_lists_of_names_have_an_end() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed(MANY).endswith("model_19 and 981 more")


def test_a_message_is_text_that_every_wire_can_carry() -> None:
    error = InvalidInput("no input 'ü\ud800'")
    assert error.message == str(error) == "no input 'ü\\ud800'"
