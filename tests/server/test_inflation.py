from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.server.http2.client import INFER, STREAM, Http2Client, framed, infer

from salver.config import Limits
from salver.errors import Cancelled, InvalidInput, Overloaded, TooLarge
from salver.server.compression import INFLATED_AT_ONCE, compress
from salver.server.inflation import Compressed, InflationGate
from salver.types import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import Door

SIZE = 1 << 20
LIMITS = Limits(body_bytes=SIZE)


def small(num_bytes: int) -> Compressed:
    return Compressed(gzip.compress(bytes(num_bytes)), "gzip")


def large(num_bytes: int) -> Compressed:
    """One that has to be inflated off the loop."""
    body = small(num_bytes)
    body.data = gzip.compress(np.random.default_rng(0).bytes(num_bytes))
    assert len(body.data) > INFLATED_AT_ONCE
    return body


async def use(gate: InflationGate, body: Compressed) -> bytes:
    with body:
        return await gate.inflate(body, SIZE)


async def one_and_one_that_waits(
    one: InflationGate, other: InflationGate
) -> tuple[Compressed, Compressed, asyncio.Task[bytes]]:
    """A body in use, and one for which it leaves no room, each with its gate."""
    first, second = large(SIZE // 2), large(SIZE // 2 + 1)
    await use(one, first)
    waiting = asyncio.create_task(use(other, second))
    await asyncio.sleep(0)
    assert not waiting.done()
    return first, second, waiting


def is_empty(gate: InflationGate) -> bool:
    return not held(gate) and not gate.small.waiting and not gate.large.waiting


def held(gate: InflationGate) -> int:
    return gate.small.held + gate.large.held


def test_what_is_short_takes_its_place_at_once():
    gate = InflationGate(LIMITS)
    first, second = small(1000), small(1000)
    assert gate.inflate_at_once(first, SIZE) == bytes(1000)
    assert gate.inflate_at_once(second, SIZE) == bytes(1000)
    assert held(gate) == 2000
    first.free()
    first.free()
    second.free()
    assert is_empty(gate)


def test_what_may_become_too_much_is_not_inflated_at_once():
    gate = InflationGate(LIMITS)
    assert gate.inflate_at_once(small(SIZE - 1000), SIZE) is not None
    assert gate.inflate_at_once(small(SIZE - 1000), SIZE) is None
    assert gate.inflate_at_once(large(10_000), SIZE) is None


def test_a_body_takes_the_room_that_it_needs():
    """And not what so many bytes could become at most."""

    async def run() -> None:
        gate = InflationGate(LIMITS)
        bodies = [large(SIZE // 8) for _ in range(7)]
        for body in bodies:
            await use(gate, body)
        assert held(gate) == 7 * SIZE // 8
        for body in bodies:
            body.free()
        assert is_empty(gate)

    asyncio.run(run())


@pytest.mark.parametrize("num_bytes", [1000, 100_000])
def test_what_is_longer_than_its_end_says_is_refused(num_bytes):
    async def run() -> None:
        gate = InflationGate(LIMITS)
        data = gzip.compress(np.random.default_rng(0).bytes(num_bytes))
        body = Compressed(data[:-4] + (500).to_bytes(4, "little"), "gzip")
        with pytest.raises(InvalidInput, match="longer than its end says"):
            gate.inflate_at_once(body, SIZE) or await use(gate, body)
        body.free()
        assert is_empty(gate)

    asyncio.run(run())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_too_large_is_refused_as_that(encoding):
    data = compress([bytes(1001)], encoding)
    with pytest.raises(TooLarge):
        InflationGate(LIMITS).inflate_at_once(Compressed(data, encoding), 1000)


def test_bodies_wait_for_room_in_the_order_they_came():
    async def run() -> None:
        gate = InflationGate(LIMITS)
        bodies = [large(SIZE - 1000) for _ in range(3)]
        tasks = [asyncio.create_task(use(gate, body)) for body in bodies]
        for body, task in zip(bodies, tasks, strict=True):
            await task
            assert [other.held > 0 for other in bodies] == [other is body for other in bodies]
            body.free()
        assert is_empty(gate)

    asyncio.run(run())


def test_a_small_one_passes_those_that_wait():
    async def run() -> None:
        outer = InflationGate(LIMITS)
        gate = InflationGate(LIMITS, outer=outer)
        first, second, waiting = await one_and_one_that_waits(gate, gate)
        third = small(SIZE // 256)
        assert gate.inflate_at_once(small(SIZE // 256 + 1), SIZE) is None
        assert gate.inflate_at_once(third, SIZE) is not None
        for body in (first, third):
            body.free()
        await waiting
        second.free()
        assert is_empty(gate)
        assert is_empty(outer)

    asyncio.run(run())


def test_all_together_hold_no_more_than_may_be():
    async def run() -> None:
        gate = InflationGate(LIMITS)
        bodies = [large(SIZE // 2), large(SIZE // 2 - SIZE // 16)]
        for body in bodies:
            await use(gate, body)
        bodies += [small(SIZE // 256) for _ in range(17)]
        plain = [gate.inflate_at_once(body, SIZE) for body in bodies[2:]]
        assert [each is None for each in plain] == 16 * [False] + [True]
        assert held(gate) == SIZE
        for body in bodies:
            body.free()
        assert is_empty(gate)

    asyncio.run(run())


def test_an_outer_gate_counts_what_all_inner_ones_hold():
    async def run() -> None:
        outer = InflationGate(LIMITS)
        one, other = InflationGate(LIMITS, outer=outer), InflationGate(LIMITS, outer=outer)
        first, second, waiting = await one_and_one_that_waits(one, other)
        assert outer.large.held == len(outer.large.waiting) * (SIZE // 2)
        first.free()
        await waiting
        second.free()
        assert all(map(is_empty, (one, other, outer)))

    asyncio.run(run())


@pytest.mark.parametrize("is_inner", [False, True])
def test_nobody_waits_for_ever(is_inner):
    async def run() -> None:
        limits = Limits(body_bytes=SIZE, body_timeout_s=0)
        outer = InflationGate(limits)
        gate = InflationGate(limits, outer=outer) if is_inner else outer
        first = large(SIZE - 1000)
        await use(outer, first)
        late = large(SIZE - 1000)
        with pytest.raises(Overloaded, match="compressed bodies"):
            await use(gate, late)
        late.free()
        first.free()
        assert is_empty(outer)
        assert is_empty(gate)

    asyncio.run(run())


def test_what_is_not_wanted_any_more_is_not_inflated():
    async def run() -> None:
        gate = InflationGate(LIMITS)
        first, second, waiting = await one_and_one_that_waits(gate, gate)
        second.free()
        assert not second.data
        first.free()
        with pytest.raises(Cancelled):
            await waiting
        assert is_empty(gate)

    asyncio.run(run())


def test_a_place_is_kept_while_somebody_works_on_the_body():
    gate = InflationGate(LIMITS)
    body = small(1000)
    with body:
        gate.inflate_at_once(body, SIZE)
        body.free()
        assert held(gate) == 1000
    assert is_empty(gate)


def test_broken_data_keep_no_place():
    async def run() -> None:
        gate = InflationGate(LIMITS)
        for body in (Compressed(b"abc", "gzip"), Compressed(b"abc" * 9000, "gzip")):
            with pytest.raises(InvalidInput):
                gate.inflate_at_once(body, SIZE) or await use(gate, body)
            body.free()
        assert is_empty(gate)

    asyncio.run(run())


def packed(data: bytes) -> bytes:
    return b"\1" + framed(gzip.compress(data, 1))[1:]


def send_unary(client: Http2Client, data: bytes) -> int:
    stream = client.call(INFER, ends=False, grpc_encoding="gzip")
    client.send(stream, packed(data), end=True)
    return stream


def send_message(client: Http2Client, data: bytes) -> int:
    stream = client.call(STREAM, ends=False, grpc_encoding="gzip")
    client.send(stream, packed(data), end=True)
    return stream


def send_http(client: Http2Client, data: bytes) -> int:
    del data
    body = client.door.infer(1, 2, 3, 4) + b" " * 40_000
    return client.request("/v2/models/m/infer", gzip.compress(body), content_encoding="gzip")


@pytest.mark.parametrize("send", [send_unary, send_message, send_http])
@pytest.mark.parametrize("leaves", [False, True])
def test_inflated_bodies_of_one_connection_are_in_use_one_at_a_time(
    door: Callable[..., Door], send: Any, leaves: bool
) -> None:
    here = door(body_bytes=1 << 16)
    here.engine.holds = True
    client = Http2Client(here)
    streams = [send(client, infer(bytes(40_000))) for _ in range(4)]
    for number, stream in enumerate(streams, 1):
        settle(client, number)
        call = here.engine.calls[-1]
        assert held(client.socket.inflation) > 0
        if leaves:
            client.h2.reset_stream(stream)
            client.turn()
        else:
            here.engine.answer(call, Tensor.of([1.0]))
            assert client.answer(stream).data
    assert is_empty(client.socket.inflation)
    assert is_empty(here.app.inflation)


def settle(client: Http2Client, num_calls: int) -> None:
    """Lets so many calls begin, and no more."""
    here = client.door
    client.turn()
    while len(here.engine.calls) < num_calls:
        tasks = here.app._tasks
        here.loop.run_until_complete(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
    client.turn()
    assert len(here.engine.calls) == num_calls
