"""The access log: one line per request, written by a thread so that the loop never waits."""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import select
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from salver.clock import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import RawIOBase

log = logging.getLogger("salver.server")
_FLUSH_RECORDS: Final = 512
_MAX_BATCHES: Final = 128
"""What waits for a slow reader: about 65,000 lines; later ones are counted, not kept."""
_CLOSE_TIMEOUT_S: Final = 2.0


class Record(NamedTuple):
    """One answered request. `request_id` is empty if the client sent none; `length` is in bytes."""

    time: float
    method: str
    path: str
    model: str
    status: int
    length: int
    duration_ns: int
    request_id: str


class AccessLog:
    """Text for people, JSON lines for programs. `stream` is unbuffered.

    Once the stream is closed at its other end, requests are served without a log.
    """

    def __init__(self, stream: RawIOBase, *, as_json: bool) -> None:
        self._stream = stream
        self._format = json_line if as_json else text_line
        self._records: list[Record] = []
        self._batches: queue.SimpleQueue[list[Record] | None] = queue.SimpleQueue()
        self._num_lost = 0
        self._num_lost_told = 0
        self._is_open = True
        self._ids = request_ids()
        self._thread = threading.Thread(target=self._drain, name="salver-access-log", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Notes one answered request."""
        self._records.append(record)
        if len(self._records) >= _FLUSH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Hands what was noted to the thread."""
        records, self._records = self._records, []
        if self._batches.qsize() >= _MAX_BATCHES:
            self._num_lost += len(records)
        elif records and self._is_open:
            self._batches.put(records)

    def close(self) -> None:
        """Writes the rest and ends the thread; does not wait for a reader that is stuck."""
        self.flush()
        self._batches.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _drain(self) -> None:
        try:
            while (records := self._batches.get()) is not None:
                lines = [self._format(self._named(record)) for record in records]
                _write_all(self._stream, b"".join(lines))
                self._tell_losses()
        except (OSError, ValueError):
            self._is_open = False

    def _tell_losses(self) -> None:
        lost = self._num_lost - self._num_lost_told
        if lost:
            self._num_lost_told += lost
            log.warning("%d requests are not in the access log: its reader is too slow", lost)

    def _named(self, record: Record) -> Record:
        return record if record.request_id else record._replace(request_id=next(self._ids))


def request_ids() -> Iterator[str]:
    """Names for requests that came without: short, in order, different after a restart."""
    start = secrets.token_hex(3)
    return (f"{start}-{number}" for number in itertools.count(1))


def json_line(record: Record) -> bytes:
    """One object per line."""
    fields = {
        "time": round(record.time, 3),
        "method": record.method,
        "path": record.path,
        "model": record.model,
        "status": record.status,
        "bytes": record.length,
        "ms": record.duration_ns // 1000 / 1000,
        "id": record.request_id,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def text_line(record: Record) -> bytes:
    """Time, status, request, duration, id; what a client chose cannot end the line."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.time))
    ms = record.duration_ns / NS_PER_MS
    path, request_id = printable(record.path), printable(record.request_id)
    line = f"{clock} {record.status} {record.method:<4} {path} {ms:.2f} ms {request_id}\n"
    return line.encode(errors="replace")


def printable(text: str) -> str:
    """`text` with control characters and the like written as escapes, as terminals obey them."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "replace").decode()
        for letter in text
    )


def _write_all(stream: RawIOBase, data: bytes) -> None:
    """Raises: OSError, ValueError when the stream is closed at either end."""
    rest = memoryview(data)
    while rest:
        written = stream.write(rest)
        if written is None:  # a terminal that another program has set to non-blocking
            select.select([], [stream], [])
        else:
            rest = rest[written:]
