"""Every option that may change while serving does so on a server that runs."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.server.conftest import SECOND, Door
from tests.server.http2.client import Http2Client

from salver.clock import system_clock
from salver.config import ServerConfig, combine, is_hot, walk
from salver.control.options import take_over
from salver.engine.engine import Engine
from salver.server.front import Front

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = "/v2/models/m/infer"


def change(door: Door, option: str, value: Any) -> None:
    """What a changed file comes to."""
    config = door.app.config
    (difference,) = take_over(config, combine(config, {option: value}))
    assert difference.is_hot
    door.app.heed_options()


def body_bytes(make: Callable[..., Door]) -> None:
    door = make(body_bytes=50)
    client, other = door.connect(), Http2Client(door)
    body = Door.infer()
    whole = Door.request(body)
    chunked = Door.request(Transfer_Encoding="chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    packed = Door.request(gzip.compress(body + b" " * 900), Content_Encoding="gzip")

    def statuses() -> list[int]:
        found = [client.send(whole)[-1].status]
        found += [door.connect().send(data)[-1].status for data in (chunked, packed)]
        for headers in ({"content_length": str(len(body))}, {}):
            stream = other.request(PATH, body, **headers)
            found.append(int(other.answer(stream).head[":status"]))
        return found

    assert statuses() == [413] * 5
    change(door, "limits.body_bytes", 2000)
    assert statuses() == [200] * 5
    change(door, "limits.body_bytes", 50)
    assert statuses() == [413] * 5


def connections(make: Callable[..., Door]) -> None:
    door = make(connections=1)
    assert [door.connect().transport.ended for _ in range(2)] == ["", "aborted"]
    change(door, "limits.connections", 2)
    assert [door.connect().transport.ended for _ in range(2)] == ["", "aborted"]


def body_timeout_s(make: Callable[..., Door]) -> None:
    door = make(body_timeout_s=30)
    client = door.connect().feed(Door.request(Door.infer())[:-1])
    door.pass_time(10)
    assert not client.transport.ended
    change(door, "limits.body_timeout_s", 5)
    door.pass_time(0)
    assert client.transport.ended == "aborted"


def idle_timeout_s(make: Callable[..., Door]) -> None:
    door = make(idle_timeout_s=30)
    client = door.connect()
    door.pass_time(10)
    assert not client.transport.ended
    change(door, "limits.idle_timeout_s", 5)
    door.pass_time(0)
    assert client.transport.ended == "closed"


def request_timeout_s(make: Callable[..., Door]) -> None:
    door = make(request_timeout_s=0)
    client = door.connect()
    for seconds in (0, 20, 0):
        if door.app.config.limits.request_timeout_s != seconds:
            change(door, "limits.request_timeout_s", seconds)
        client.send(Door.request(Door.infer()))
        deadline = door.engine.calls[-1].context.deadline
        assert deadline == (door.time + seconds * SECOND if seconds else 0)


def drain_timeout_s(make: Callable[..., Door]) -> None:
    async def drain() -> None:
        config = ServerConfig(access_log="off")
        engine = Engine(config, system_clock)
        front = Front(config, engine, cast("Any", None))
        given: list[float] = []

        async def note(drain_s: float) -> None:
            given.append(drain_s)

        engine.drain = note  # type: ignore[method-assign]
        take_over(config, combine(config, {"drain_timeout_s": 5}))
        front.heed_options()
        await front.drain()
        assert given[0] == 5

    asyncio.run(drain())


EFFECTS = {
    f"limits.{effect.__name__}": effect
    for effect in (body_bytes, connections, body_timeout_s, idle_timeout_s, request_timeout_s)
} | {"drain_timeout_s": drain_timeout_s}


def test_every_hot_option_is_tried_here() -> None:
    hot = {name for name, _, meta, _ in walk(ServerConfig) if is_hot(meta)}
    # It concerns the timer alone, of which tests/control tells.
    assert hot - {"poll_interval_s"} == EFFECTS.keys()


@pytest.mark.parametrize("option", EFFECTS)
def test_a_change_has_its_effect(door: Callable[..., Door], option: str) -> None:
    EFFECTS[option](door)


def test_an_open_http2_connection_takes_larger_bodies(door: Callable[..., Door]) -> None:
    server = door(body_bytes=10_000)
    client = Http2Client(server)
    change(server, "limits.body_bytes", 1 << 20)
    server.pass_time(1)
    client.turn()
    stream = client.request(PATH, b" " * 200_000 + Door.infer())
    assert client.answer(stream).head[":status"] == "200"


def test_http2_bodies_may_be_larger_than_a_window_can_be(door: Callable[..., Door]) -> None:
    client = Http2Client(door(body_bytes=4 << 30))
    assert client.h2.outbound_flow_control_window == 2**31 - 1
    stream = client.request(PATH, Door.infer())
    assert client.answer(stream).head[":status"] == "200"
