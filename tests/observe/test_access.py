from __future__ import annotations

import io
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

from salver.observe import access
from salver.observe.access import AccessLog, Record, json_line, printable, request_ids, text_line

if TYPE_CHECKING:
    from pathlib import Path

RECORD = Record(1.7e9, "POST", "/predict/iris", "iris", 200, 49, 1_234_567, "abc")
HOSTILE = 'a\n{"forged": 1}\r\x1b[31m\u202e\x00"\\ü'


def test_json_has_every_field() -> None:
    assert json.loads(json_line(RECORD)) == {
        "time": 1.7e9,
        "method": "POST",
        "path": "/predict/iris",
        "model": "iris",
        "status": 200,
        "bytes": 49,
        "ms": 1.234,
        "id": "abc",
    }


def test_text_is_for_people() -> None:
    assert text_line(RECORD).decode().endswith(" 200 POST /predict/iris 1.23 ms abc\n")


@pytest.mark.parametrize("write", [json_line, text_line])
def test_what_clients_choose_cannot_forge_lines(write: access.Formatter) -> None:
    line = write(RECORD._replace(path=HOSTILE, request_id=HOSTILE))
    assert line.count(b"\n") == 1
    assert not {b"\x1b", b"\r", b"\x00"} & {bytes([byte]) for byte in line}


def test_hostile_text_survives_json() -> None:
    assert json.loads(json_line(RECORD._replace(path=HOSTILE)))["path"] == HOSTILE


def test_printable_keeps_letters_of_all_languages() -> None:
    assert printable("/modèle/模型") == "/modèle/模型"
    assert printable("ü\x1b\u202e") == "ü\\x1b\\u202e"


def test_generated_ids_differ() -> None:
    one, other = request_ids(), request_ids()
    names = [next(one), next(one), next(other)]
    assert len(set(names)) == 3


def test_lines_reach_the_stream_in_order_with_ids(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with io.FileIO(file, "w") as stream:
        log = AccessLog(stream, as_json=True)
        for number in range(1500):
            log.write(RECORD._replace(length=number, request_id="" if number % 2 else "own"))
        log.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["bytes"] for line in lines] == list(range(1500))
    assert {line["id"] for line in lines[::2]} == {"own"}
    assert len({line["id"] for line in lines[1::2]}) == 750


def test_a_closed_pipe_ends_the_log_and_nothing_else() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with io.FileIO(write_end, "w") as stream:
        log = AccessLog(stream, as_json=False)
        log.write(RECORD)
        log.flush()
        log._thread.join()
        for _ in range(10_000):
            log.write(RECORD)
        log.close()
    assert log._batches.qsize() <= 2


class Stuck(io.RawIOBase):
    """A reader that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.written = 0

    def write(self, data: object) -> int:
        self.go_on.wait()
        self.written += bytes(data).count(b"\n")  # type: ignore[call-overload]
        return memoryview(data).nbytes  # type: ignore[arg-type]


def test_a_stuck_reader_costs_a_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    stream, num_lines = Stuck(), 100_000
    log = AccessLog(stream, as_json=False)
    for _ in range(num_lines):
        log.write(RECORD)
    assert log._batches.qsize() <= access._MAX_BATCHES
    stream.go_on.set()
    log.close()
    assert stream.written + log._num_lost == num_lines
    assert "are not in the access log" in caplog.text


def test_partial_writes_are_continued(tmp_path: Path) -> None:
    class Slow(io.FileIO):
        def write(self, data: object) -> int:
            return super().write(memoryview(data)[:7])  # type: ignore[arg-type]

    file = tmp_path / "log"
    with Slow(file, "w") as stream:
        log = AccessLog(stream, as_json=True)
        log.write(RECORD)
        log.close()
    assert json.loads(file.read_text())["status"] == 200
