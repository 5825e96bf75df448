from __future__ import annotations

import gc
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salver.engine import channel as channels
from salver.engine.channel import (
    NUM_SLOTS,
    SLOT_BYTES,
    SLOT_THRESHOLD_BYTES,
    BrokenFrame,
    Channel,
    InSlots,
    OutSlots,
    create_arena,
)
from salver.engine.frames import (
    Failed,
    Item,
    Payload,
    Ping,
    array_of,
    error_of,
    fault_of,
    tensors_of,
)
from salver.errors import InvalidInput, ModelFailed, Overloaded, TooLarge
from salver.types import BF16, BYTES, DTYPES, FP32, Packed, Tensor, Tensors, pack_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPE_NAMES = sorted(DTYPES)


@contextmanager
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends, with sockets that never wait."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    out_fd, in_fd = create_arena(), create_arena()
    server = Channel(here, OutSlots(out_fd), InSlots(in_fd))
    worker = Channel(there, OutSlots(in_fd), InSlots(out_fd))
    os.close(out_fd)
    os.close(in_fd)
    try:
        yield server, worker
    finally:
        server.close()
        worker.close()


def carry(sender: Channel, receiver: Channel, *frames: tuple[Any, Payload | None]) -> list[Any]:
    for frame, payload in frames:
        sender.send(frame, payload)
    messages: list[Any] = []
    while len(messages) < len(frames):
        sender.flush()
        messages += receiver.receive()
    return messages


def item(**tensors: Tensor) -> tuple[Item, Payload]:
    payload = Payload()
    return Item(1, 0, payload.tensors(Tensors(tensors))), payload


def arrays() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    kinds = [d.numpy for d in DTYPES.values() if d is not BYTES]
    return st.sampled_from(kinds).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0, max_side=6))
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(arrays(), max_size=4), st.lists(st.binary(max_size=40), max_size=5))
def test_every_type_and_shape_arrives_unchanged(
    values: list[np.ndarray[Any, Any]], texts: list[bytes]
) -> None:
    sent = Tensors({f"a{i}": Tensor.of(value) for i, value in enumerate(values)})
    sent["texts"] = Tensor(BYTES, (len(texts),), Packed(pack_bytes(texts)))
    with ends() as (server, worker):
        ((frame, payload),) = carry(server, worker, item(**sent))
        got = tensors_of(frame.tensors, payload)
        assert list(got) == list(sent)
        assert got["texts"].array().tolist() == texts
        for i, value in enumerate(values):
            tensor = got[f"a{i}"]
            assert (tensor.shape, tensor.dtype) == (value.shape, sent[f"a{i}"].dtype)
            np.testing.assert_array_equal(tensor.array(), value)
            assert not tensor.array().flags.writeable


@pytest.mark.parametrize(
    "size",
    [
        SLOT_THRESHOLD_BYTES - 1,
        SLOT_THRESHOLD_BYTES,
        SLOT_THRESHOLD_BYTES + 1,
        200_000,
        SLOT_BYTES,
        SLOT_BYTES + 1,
        64 << 20,
    ],
)
def test_large_arrays_arrive_by_slot_or_socket(size: int) -> None:
    value = (np.arange(size, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8)
    with ends() as (server, worker):
        for sender, receiver in ((server, worker), (worker, server)):
            ((frame, payload),) = carry(sender, receiver, item(x=Tensor.of(value)))
            assert array_of(frame.tensors["x"], payload).tobytes() == value.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 1000, 30_000, 200_000]), max_size=12))
def test_frames_keep_their_order_whatever_their_size(sizes: list[int]) -> None:
    with ends() as (server, worker):
        frames = [item(x=Tensor.of(np.full(size, i, np.uint8))) for i, size in enumerate(sizes)]
        for i, (frame, payload) in enumerate(carry(server, worker, *frames)):
            got = array_of(frame.tensors["x"], payload)
            assert got.shape == (sizes[i],)
            assert (got == i).all()


def test_strided_and_foreign_endian_arrays_are_made_plain() -> None:
    strided = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3]
    foreign = Tensor(FP32, (3,), np.array([1, 2, 3], ">f4"))
    bits = Tensor(BF16, (2,), np.array([1, 0x7FC0], np.uint16))
    with ends() as (server, worker):
        ((frame, payload),) = carry(
            server, worker, item(a=Tensor.of(strided), b=foreign, c=bits, d=Tensor(FP32, (1,), [5]))
        )
        got = tensors_of(frame.tensors, payload)
        np.testing.assert_array_equal(got["a"].array(), strided)
        assert got["b"].array().tolist() == [1, 2, 3]
        assert got["c"].dtype is BF16
        assert got["d"].array().tolist() == [5]


def test_a_slot_is_reused_only_when_its_last_array_is_gone() -> None:
    large = Tensor.of(np.zeros(SLOT_THRESHOLD_BYTES, np.uint8))
    with ends() as (server, worker):
        held = []
        for _ in range(NUM_SLOTS + 2):
            ((frame, payload),) = carry(server, worker, item(x=large))
            held.append(array_of(frame.tensors["x"], payload)[1:][::2])
            del frame, payload
        assert not server._out._free
        del held[:2]
        held.pop()
        carry(worker, server, (Ping(), None))
        assert len(server._out._free) == 2
        held.clear()
        carry(worker, server, (Ping(), None))
        assert sorted(server._out._free) == list(range(NUM_SLOTS))


def test_a_slot_that_is_read_keeps_its_content() -> None:
    with ends() as (server, worker):
        held = []
        for i in range(20):
            value = np.full(SLOT_THRESHOLD_BYTES, i, np.uint8)
            ((frame, payload),) = carry(server, worker, item(x=Tensor.of(value)))
            if i % 3 == 0:
                held.append((i, array_of(frame.tensors["x"], payload)))
            del frame, payload
            carry(worker, server, (Ping(), None))
        assert all((array == i).all() for i, array in held)


def test_arrays_outlive_their_channel() -> None:
    with ends() as (server, worker):
        value = np.arange(100_000)
        ((frame, payload),) = carry(server, worker, item(x=Tensor.of(value)))
        got = array_of(frame.tensors["x"], payload)
    del server, worker, frame, payload
    gc.collect()
    np.testing.assert_array_equal(got, value)


def test_the_arena_cannot_be_resized() -> None:
    fd = create_arena()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    os.close(fd)


def test_errors_travel_by_name() -> None:
    for error in (InvalidInput("x is bad"), Overloaded("later", retry_after_ms=7)):
        with ends() as (server, worker):
            ((frame, _),) = carry(worker, server, (Failed(fault_of(error)), None))
        got = error_of(frame.fault)
        assert type(got) is type(error)
        assert (got.message, got.retry_after_ms) == (error.message, error.retry_after_ms)
    assert type(error_of(fault_of(KeyError("k")))) is ModelFailed


def test_a_frame_beyond_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_FRAME_BYTES", 1000)
    with ends() as (server, worker):
        with pytest.raises(TooLarge):
            server.send(*item(x=Tensor.of(np.zeros(1000, np.uint8))))
        assert len(carry(server, worker, (Ping(), None))) == 1


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=14, max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    here, there = socket.socketpair()
    there.setblocking(False)
    fd = create_arena()
    receiver = Channel(there, OutSlots(fd), InSlots(fd))
    os.close(fd)
    here.sendall(data)
    here.close()
    with pytest.raises((BrokenFrame, EOFError)):
        list(iter(receiver.receive, None))
    receiver.close()
