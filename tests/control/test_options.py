from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from salver.config import ServerConfig, combine, read
from salver.control import options as module
from salver.control.options import Difference, OptionsFile, follow, take_over

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from salver.control.reload import Repository


class Served:
    """A file of options, what flags say, and the configuration that follows it."""

    def __init__(self, path: Path, flags: dict[str, Any]) -> None:
        self.path = path
        self.flags = flags
        self.options = OptionsFile(path, self.read)
        self.config = self.read()

    def read(self) -> ServerConfig:
        return combine(read(self.path, ServerConfig), self.flags)

    def write(self, text: str) -> None:
        """Puts the file in place at once, as another one."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def look(self) -> bool:
        return asyncio.run(self.options.look(self.config))

    def heed(self, text: str) -> bool:
        """Writes, and looks until the file counts as being at rest."""
        self.write(text)
        assert not self.look()
        return self.look()


@pytest.fixture
def served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Served]:
    caplog.set_level(logging.INFO, "salver.server")

    def make(text: str | None, **flags: Any) -> Served:
        path = tmp_path / "salver.yaml"
        if text is not None:
            path.write_text(text)
        return Served(path, flags)

    return make


def test_hot_options_change_in_place_and_the_others_are_told() -> None:
    config = combine(ServerConfig(), {"port": 1, "drain_timeout_s": 5})
    limits = config.limits
    found = take_over(config, combine(ServerConfig(), {"port": 2, "limits.body_bytes": 7}))
    assert found == [
        Difference("port", False, 1, 2),
        Difference("drain_timeout_s", True, 5.0, 30.0),
        Difference("limits.body_bytes", True, 64 << 20, 7),
    ]
    assert (config.port, config.drain_timeout_s, limits.body_bytes) == (1, 30.0, 7)
    assert ServerConfig().limits.body_bytes == 64 << 20


def test_a_changed_file_is_heeded_and_told_of_in_one_line(
    served: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    server = served("limits: {body_bytes: 100}")
    assert server.heed("limits: {body_bytes: 100000, connections: 3}")
    assert server.config.limits.body_bytes == 100_000
    assert caplog.messages == [
        "salver.yaml: limits.body_bytes: 100 -> 100000, limits.connections: 16384 -> 3"
    ]
    assert not server.look()


def test_a_file_that_still_changes_is_left_alone(served: Callable[..., Served]) -> None:
    server = served("drain_timeout_s: 1")
    server.write("")
    assert not server.look()
    server.write("drain_timeout_s: 22")
    assert not server.look()
    assert server.config.drain_timeout_s == 1
    assert server.look()
    assert server.config.drain_timeout_s == 22


def test_a_file_may_come_later_and_its_end_changes_nothing(served: Callable[..., Served]) -> None:
    server = served(None)
    assert not server.look()
    assert server.heed("drain_timeout_s: 4")
    os.unlink(server.path)
    assert not any(server.look() for _ in range(3))
    assert server.config.drain_timeout_s == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("drain_timeout_s: 2\nprot: 80", "salver.yaml:2: unknown key 'prot'. Did you mean 'port'?"),
        ("drain_timeout_s: 2\nlimits: {body_bytes: 0}", "salver.yaml:2: limits.body_bytes: "),
        ("drain_timeout_s: [", "salver.yaml:1: "),
        ("drain_timeout_s: 2001-99-99", "month must be in 1..12"),
    ],
)
def test_a_broken_file_changes_nothing(
    served: Callable[..., Served], caplog: pytest.LogCaptureFixture, text: str, problem: str
) -> None:
    server = served("drain_timeout_s: 1")
    assert not server.heed(text)
    assert not server.look()
    (line,) = caplog.messages
    assert line.startswith("the options stay as they are: " + problem)
    assert server.config.drain_timeout_s == 1
    assert server.heed("drain_timeout_s: 3")


def test_static_options_are_told_of_and_flags_win(
    served: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    server = served("port: 80", host="::", drain_timeout_s="7")
    assert not server.heed("port: 81\nhost: 0.0.0.0\ntrust: true\ndrain_timeout_s: 9")
    assert caplog.messages == ["salver.yaml: needs a restart: port, trust"]
    assert (server.config.port, server.config.drain_timeout_s) == (80, 7)
    assert not server.heed("port: 80\nhost: 127.0.0.1")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("mode", ["poll", "explicit", "none"])
def test_one_timer_looks_at_options_and_models(
    served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    server = served("poll_interval_s: 3", mode=mode)
    sleep, slept, seen = asyncio.sleep, [], []

    async def noted_sleep(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)
        if len(slept) == 4:
            raise asyncio.CancelledError

    class Models:
        async def look(self) -> None:
            seen.append(len(slept))

    monkeypatch.setattr(module.asyncio, "sleep", noted_sleep)
    server.write("poll_interval_s: 0.5")
    changed: list[float] = []
    models = cast("Repository", Models())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(
            follow(server.config, models, server.options, lambda: changed.append(slept[-1]))
        )
    assert slept == [3, 3, 0.5, 0.5]
    assert changed == [3]
    assert seen == ([1, 2, 3] if mode == "poll" else [])
