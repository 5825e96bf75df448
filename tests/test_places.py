from __future__ import annotations

import pytest

from salver.errors import InvalidInput, LoadFailed
from salver.places import hidden_cause, told, without_places


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no '/srv/deep/w.bin' here", "no 'w.bin' here"),
        ('"/srv/o\'neill/my w.bin"', '"my w.bin"'),
        ("/srv/two words/w.bin is bad", "w.bin is bad"),
        ("copy /srv/a to /srv/b", "copy a to b"),
        ("(/srv/x.py:12), /a/y:/a/z;path=/a/q", "(x.py:12), y:z;path=q"),
        ("/weights.bin", "weights.bin"),
        ("</srv/x>", "<x>"),
        ("~/deep/x", "x"),
        ("PosixPath('/srv/x')", "PosixPath('x')"),
        (r"C:\Users\jo doe\w.bin is bad", "w.bin is bad"),
        (r"'C:\\Users\\jo doe\\w.bin'", "'w.bin'"),
        ("D:/deep/w.bin", "w.bin"),
        (r"\\server\share\w.bin", "w.bin"),
        ("file:///srv/w.bin", "w.bin"),
        ("sqlite:////srv/a.db", "a.db"),
        ("<Net object at 0x7f12ab34>", "<Net object>"),
        (
            'Original Traceback (most recent call last):\n  File "/a.py", line 3\n    f()\nE: bad',
            "E: bad",
        ),
    ],
)
def test_clients_see_no_places(text: str, shown: str) -> None:
    assert without_places(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a/b?x=/y and s3://bucket/key",
        "1/2 and/or 3 m/s, N/A, */*, [a]/b, 7 / 8, 9 // 2",
        "'/' (/) /, / /",
        "./own/file ../other own/file",
        r"\\d+ and \n",
        "</div>",
        "It costs 0x10.",
    ],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert without_places(text) == text


@pytest.mark.parametrize("piece", ["/a", " /a", "'/", "/a b", "a.", "\\\\", "C:\\", "a://"])
def test_a_long_text_is_read_in_one_pass(piece: str) -> None:
    assert len(without_places(piece * 100_000)) <= len(piece) * 100_000


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (FileNotFoundError(2, "Not there", "/srv/w.bin"), "FileNotFoundError: Not there: 'w.bin'"),
        (IsADirectoryError(21, "Is one", b"/srv/d/"), "IsADirectoryError: Is one: 'd'"),
        (OSError(18, "Other disk", "/a/x", None, "/b/y z"), "OSError: Other disk: 'x': 'y z'"),
        (OSError(9, "Bad descriptor", 7), "OSError: Bad descriptor"),
        (OSError("/srv/w.bin is bad"), "OSError: w.bin is bad"),
        (KeyError("/srv/w"), "KeyError: 'w'"),
        (ValueError(), "ValueError"),
        (InvalidInput("nothing at '/v2/x'"), "InvalidInput: nothing at '/v2/x'"),
    ],
)
def test_an_exception_is_told_by_its_type_and_text(error: Exception, shown: str) -> None:
    assert told(error) == shown


def test_an_exception_without_a_text_of_its_own_is_told_by_its_type() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert told(Mute()) == "Mute"


@pytest.mark.parametrize(
    ("cause", "lines"),
    [
        (None, ""),
        (OSError("disk gone"), ""),
        (KeyError(), "KeyError\n"),
        (OSError("no '/srv/w.bin'"), "OSError: no '/srv/w.bin'\n"),
    ],
)
def test_the_log_names_the_cause_that_a_message_hides(cause: Exception | None, lines: str) -> None:
    error = LoadFailed("m cannot be read: disk gone")
    error.__cause__ = cause
    assert hidden_cause(error) == lines
