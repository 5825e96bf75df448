"""The access log: one line per request, written by a thread so that the loop never waits."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from typing import TextIO

_FLUSH_LINES = 512


class AccessLog:
    """Text for people, JSON lines for programs."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._lines: list[str] = []
        self._batches: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name="salver-access-log", daemon=True)
        self._thread.start()

    def write(
        self, method: str, path: str, status: int, length: int, duration_ns: int, request_id: str
    ) -> None:
        """Notes one answered request; `length` is the answer's body in bytes."""
        if self._as_json:
            line = orjson.dumps(
                {
                    "time": round(time.time(), 3),
                    "method": method,
                    "path": path,
                    "status": status,
                    "bytes": length,
                    "ms": duration_ns // 1000 / 1000,
                    "id": request_id,
                }
            ).decode()
        else:
            clock = time.strftime("%H:%M:%S")
            safe = path.encode("unicode_escape").decode()
            line = f"{clock} {status} {method:<4} {safe} {duration_ns / 1e6:.2f} ms {request_id}"
        self._lines.append(line)
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Hands what was noted to the thread."""
        if self._lines:
            self._batches.put(self._lines)
            self._lines = []

    def close(self) -> None:
        """Writes the rest and ends the thread."""
        self.flush()
        self._batches.put(None)
        self._thread.join(timeout=2)

    def _drain(self) -> None:
        while (lines := self._batches.get()) is not None:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return
