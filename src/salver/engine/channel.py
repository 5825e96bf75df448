"""Frames between server and worker: a socket pair for words, sealed memory slots for large tensors.

A frame is a fixed head, its MessagePack and, unless it lies in a slot, its payload. A slot belongs
to the reader until the last array in it is gone; when none is free the payload takes the socket.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from salver.engine.frames import Payload, decoder, encoder
from salver.errors import TooLarge

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator

    from salver.engine.frames import AnyFrame
    from salver.types import Array, Buffer

    Message = tuple[AnyFrame, Array]

NUM_SLOTS: Final = 4
SLOT_BYTES: Final = 16 << 20
SLOT_THRESHOLD_BYTES: Final = 16 << 10
MAX_FRAME_BYTES: Final = 2 << 30

_ARENA_BYTES: Final = NUM_SLOTS * SLOT_BYTES
_HEAD: Final = struct.Struct("<IQbB")  # header bytes, payload bytes, slot (-1: none), given back
_STAGING_BYTES: Final = 128 << 10
_NOTHING: Final[Array] = np.empty(0, np.uint8)
_NOTHING.flags.writeable = False


class BrokenFrame(Exception):
    """The peer sent what no peer of ours sends."""


def create_arena() -> int:
    """A descriptor of memory for `NUM_SLOTS` slots; sealed, so that no peer can shrink it.

    Memory is taken only where a slot was written.
    """
    fd = os.memfd_create("salver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, _ARENA_BYTES)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class OutSlots:
    """The slots that this side writes."""

    def __init__(self, fd: int) -> None:
        self._memory: Array = np.frombuffer(mmap.mmap(fd, _ARENA_BYTES), np.uint8)
        # The last one given back is the first to be used again: its pages are there.
        self._free = list(range(NUM_SLOTS))[::-1]

    def write(self, payload: Payload) -> int:
        """Copies the payload into a free slot and returns its number; -1 if it does not fit."""
        if not SLOT_THRESHOLD_BYTES <= payload.size <= SLOT_BYTES or not self._free:
            return -1
        slot = self._free.pop()
        start = slot * SLOT_BYTES
        for offset, data in payload.buffers:
            place = self._memory[start + offset : start + offset + len(data)]
            place[:] = np.frombuffer(data, np.uint8) if len(data) else _NOTHING
        # What was copied may itself lie in a slot of the peer, which is free from here on.
        payload.buffers.clear()
        return slot

    def take_back(self, slots: int) -> None:
        if slots:
            self._free.extend(slot for slot in range(NUM_SLOTS) if slots >> slot & 1)


class InSlots:
    """The slots that the peer writes; read-only here."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _ARENA_BYTES, prot=mmap.PROT_READ)
        self._leases: dict[int, weakref.ref[Array]] = {}
        self._unused: list[int] = []

    def read(self, slot: int, size: int) -> Array:
        """The payload in a slot. Every view of it keeps the slot from being used again."""
        payload = np.frombuffer(self._memory, np.uint8, size, slot * SLOT_BYTES)
        self._leases[slot] = weakref.ref(payload, partial(self._end, slot))
        return payload

    def _end(self, slot: int, _: weakref.ref[Array]) -> None:
        # May run in any thread at any time, so it does nothing but one atomic step.
        self._unused.append(slot)

    def give_back(self) -> int:
        """The slots that nobody reads any more, as bits; the peer must hear of them."""
        slots = 0
        while self._unused:
            slots |= 1 << self._unused.pop()
        return slots


class Channel:
    """One end. `send` may be called from any thread, `receive` from one. Channels to one peer
    share their slots.

    On a blocking socket `send` returns when all is written. Otherwise what the socket does not take
    is kept in `backlog` for `flush`, and `on_backlog` is called.
    """

    def __init__(
        self,
        sock: socket.socket,
        out_slots: OutSlots,
        in_slots: InSlots,
        on_backlog: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = sock
        self._out = out_slots
        self._in = in_slots
        self._on_backlog = on_backlog
        self._lock = threading.Lock()
        self.backlog: list[memoryview] = []
        self._staging = memoryview(bytearray(_STAGING_BYTES))
        self._buffer = self._staging
        self._start = 0
        self._end = 0

    def send(self, frame: AnyFrame, payload: Payload | None = None) -> None:
        """Raises: TooLarge before anything is sent; OSError when the peer is gone."""
        header = encoder.encode(frame)
        size = payload.size if payload is not None else 0
        if len(header) + size > MAX_FRAME_BYTES:
            raise TooLarge(f"{len(header) + size} bytes are more than a worker can be sent")
        with self._lock:
            slot = self._out.write(payload) if payload is not None else -1
            head = _HEAD.pack(len(header), size, slot, self._in.give_back()) + header
            if payload is None or slot >= 0:
                self._write(head)
            elif size < SLOT_THRESHOLD_BYTES:
                self._write(b"".join([head, *_padded(payload)]))
            else:
                self._write(head, *_padded(payload))

    def _write(self, first: bytes, *others: Buffer) -> None:
        if not self.backlog and not others:
            try:
                sent = self._socket.send(first)
            except BlockingIOError:
                sent = 0
            if sent == len(first):
                return
            first = first[sent:]
        had_backlog = bool(self.backlog)
        self.backlog += map(memoryview, (first, *others))
        if not had_backlog:
            self._flush()
            if self.backlog:
                self._on_backlog()

    def flush(self) -> None:
        """Writes what the socket takes of the backlog. Raises: OSError when the peer is gone."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        try:
            while self.backlog:
                self.backlog = _rest(self.backlog, self._socket.sendmsg(self.backlog[:64]))
        except BlockingIOError:
            return

    def receive(self) -> list[Message]:
        """Reads once and returns the frames that are now complete.

        Raises: EOFError when the peer has closed, BlockingIOError when nothing is there,
        BrokenFrame.
        """
        count = self._socket.recv_into(self._buffer[self._end :])
        if not count:
            raise EOFError
        self._end += count
        messages: list[Message] = []
        while (message := self._take()) is not None:
            messages.append(message)
        if self._start == self._end:
            self._start = self._end = 0
            self._buffer = self._staging
        return messages

    def _take(self) -> Message | None:
        """The next frame, or None after making room for all of it."""
        have = self._end - self._start
        if have < _HEAD.size:
            self._make_room(_HEAD.size)
            return None
        header_size, size, slot, given_back = _HEAD.unpack_from(self._buffer, self._start)
        if header_size + size > MAX_FRAME_BYTES:
            raise BrokenFrame(f"{header_size + size} bytes")
        if slot >= NUM_SLOTS or (slot >= 0 and size > SLOT_BYTES):
            raise BrokenFrame(f"{size} bytes in slot {slot}")
        inline_size = size if slot < 0 else 0
        total = _HEAD.size + header_size + inline_size
        if have < total:
            self._make_room(total)
            return None
        header_end = self._start + _HEAD.size + header_size
        try:
            frame = decoder.decode(self._buffer[self._start + _HEAD.size : header_end])
        except msgspec.MsgspecError as error:
            raise BrokenFrame(str(error)) from None
        self._start = end = header_end + inline_size
        self._out.take_back(given_back)
        if slot >= 0:
            return frame, self._in.read(slot, size)
        if not size:
            return frame, _NOTHING
        body = self._buffer[header_end:end]
        if self._buffer is self._staging:
            return frame, np.frombuffer(bytes(body), np.uint8)
        # A buffer that was made for this frame need not be copied.
        return frame, np.frombuffer(body.toreadonly(), np.uint8)

    def _make_room(self, total: int) -> None:
        """Moves a frame that has begun to where all of it fits."""
        if self._start + total <= len(self._buffer):
            return
        begun = self._buffer[self._start : self._end]
        if total <= _STAGING_BYTES:
            self._staging[: len(begun)] = bytes(begun)
            self._buffer = self._staging
        else:
            self._buffer = np.empty(total, np.uint8).data
            self._buffer[: len(begun)] = begun
        self._start, self._end = 0, len(begun)

    def close(self) -> None:
        """Nothing is sent or received any more. Slots go with the last array in them."""
        self.backlog = []
        self._socket.close()
        # Whoever still knows this channel, if only in a circle, must not keep the slots' memory.
        del self._out, self._in, self._on_backlog


class LoopChannel(Channel):
    """A channel on a non-blocking socket, for the loop, which writes what the socket did not take.

    `on_broken` is called when the peer turns out to be gone in the middle of that.
    """

    def __init__(
        self,
        sock: socket.socket,
        out_slots: OutSlots,
        in_slots: InSlots,
        loop: asyncio.AbstractEventLoop,
        on_broken: Callable[[], None],
    ) -> None:
        super().__init__(sock, out_slots, in_slots, self._wait)
        self._loop = loop
        self._on_broken = on_broken

    def _wait(self) -> None:
        self._loop.add_writer(self._socket, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self.flush()
        except OSError:
            self.backlog = []
            self._on_broken()
        if not self.backlog:
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        self._loop.remove_writer(self._socket)
        super().close()


def _padded(payload: Payload) -> Iterator[Buffer]:
    """The payload as it takes the socket, each tensor at its offset."""
    end = 0
    for offset, data in payload.buffers:
        if offset > end:
            yield bytes(offset - end)
        yield data
        end = offset + len(data)


def _rest(buffers: list[memoryview], sent: int) -> list[memoryview]:
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [buffer[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
