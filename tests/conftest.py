"""A real server for tests that drive it with real clients."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
MISSING = re.compile(r"needs |could not import")


class ServerProcess:
    """`salver serve …` on a free port. `output` is everything it said."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "salver", "serve", *arguments]
        if "--port" not in arguments:
            command += ["--port", "0"]
        self.output = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_TIMEOUT_S) or not self.port:
            self.stop()
            raise AssertionError(f"the server did not start: {self.output}")

    @property
    def port(self) -> int:
        found = re.search(r"Serving on \w+://[^\s:]+:(\d+)", self.output)
        return int(found.group(1)) if found else 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line
            if "Serving on" in line:
                self._ready.set()
        self._ready.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()
        return status


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where all tools are installed, as in CI, no test may be skipped for the want of one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    missing = [report for report in skipped if MISSING.search(str(report.longrepr[2]))]
    if missing and os.environ.get("SALVER_TEST_NO_SKIPS"):
        for report in missing:
            reporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[2]}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the module."""
    servers: list[ServerProcess] = []

    def start(*arguments: str | Path, env: dict[str, str] | None = None) -> ServerProcess:
        server = ServerProcess(*map(str, arguments), env=env)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
