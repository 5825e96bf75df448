"""A worker's process as the server sees it: start, frames, output lines, end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from salver.engine.channel import InSlots, LoopChannel, OutSlots, create_arena

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from salver.engine.frames import AnyFrame, Payload
    from salver.types import Array

log = logging.getLogger("salver.worker")
MAX_LINE_BYTES: Final = 8 << 10
PIPE_BYTES: Final = 64 << 10
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class WorkerProcess:
    """One run of the worker program. Lives on the loop.

    `on_exit` is called once with how it ended, after every frame that it had sent was handled;
    `exited` is done then too. Must be started on a thread that lives as long as the server, for the
    kernel ends a worker with the thread that started it.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        loop: asyncio.AbstractEventLoop,
        on_frame: Callable[[AnyFrame, Array], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._name = name
        self._loop = loop
        self._on_frame = on_frame
        self._on_exit = on_exit
        self.exited: asyncio.Future[None] = loop.create_future()
        with ExitStack() as on_failure, ExitStack() as theirs:
            self._socket, work_fd = _pair(on_failure, theirs)
            self._control_socket, control_fd = _pair(on_failure, theirs)
            self._output, output_fd = os.pipe2(os.O_CLOEXEC)
            on_failure.callback(os.close, self._output)
            theirs.callback(os.close, output_fd)
            out_fd, in_fd = _arena(theirs), _arena(theirs)
            slots = OutSlots(out_fd), InSlots(in_fd)
            descriptors = (work_fd, control_fd, in_fd, out_fd)
            self._process = _execute(descriptors, output_fd, threads)
            self._end = os.pidfd_open(self._process.pid)
            on_failure.pop_all()
        os.set_blocking(self._output, False)
        self._channel = LoopChannel(self._socket, *slots, loop, self.kill)
        self._control = LoopChannel(self._control_socket, *slots, loop, self.kill)
        self._line = b""
        loop.add_reader(self._socket, self._on_readable)
        loop.add_reader(self._output, self._on_output)
        loop.add_reader(self._end, self._on_end)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: AnyFrame, payload: Payload | None = None) -> None:
        """Sends what the model's thread takes in turn: work. Never waits.

        To a worker that is gone it does nothing: `on_exit` will tell. Raises: TooLarge.
        """
        self._send(self._channel, frame, payload)

    def tell(self, frame: AnyFrame, payload: Payload | None = None) -> None:
        """As `send`, for what the worker hears while it runs the model."""
        self._send(self._control, frame, payload)

    def _send(self, channel: LoopChannel, frame: AnyFrame, payload: Payload | None) -> None:
        if self.exited.done():
            return
        try:
            channel.send(frame, payload)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """Ends the worker and whatever processes it has started, at once."""
        if self._process.returncode is not None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _on_readable(self) -> bool:
        """Handles what one read gives; False when there is nothing more."""
        try:
            for frame, payload in self._channel.receive():
                self._on_frame(frame, payload)
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self._loop.remove_reader(self._socket)
            self.kill()
            return False
        except Exception:
            log.exception("%s: what the worker sent cannot be handled; it is ended", self._name)
            self._loop.remove_reader(self._socket)
            self.kill()
            return False
        return True

    def _on_output(self) -> bool:
        """Passes on what user code printed, line by line; False when there is nothing more."""
        try:
            data = os.read(self._output, MAX_LINE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._output)
            self._print(self._line)
            self._line = b""
            return False
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._print(line)
        if len(self._line) >= MAX_LINE_BYTES:
            self._print(self._line)
            self._line = b""
        return True

    def _print(self, line: bytes) -> None:
        if line.strip():
            log.info("%s: %s", self._name, line.decode(errors="replace").rstrip())

    def _on_end(self) -> None:
        # Its own children go first: as long as it is not waited for, its group cannot be another's.
        self.kill()
        status = self._process.wait()
        while self._on_readable():
            pass
        # Whoever else still writes there must not keep the loop from going on.
        for _ in range(PIPE_BYTES // MAX_LINE_BYTES):
            self._on_output()
        self._print(self._line)
        self._loop.remove_reader(self._socket)
        for fd in (self._output, self._end):
            self._loop.remove_reader(fd)
            os.close(fd)
        self._channel.close()
        self._control.close()
        self.exited.set_result(None)
        self._on_exit(_how(status))


def _pair(on_failure: ExitStack, theirs: ExitStack) -> tuple[socket.socket, int]:
    """Our end of a connection, and the descriptor of the worker's."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    on_failure.enter_context(ours)
    theirs.enter_context(other)
    ours.setblocking(False)
    return ours, other.fileno()


def _arena(theirs: ExitStack) -> int:
    fd = create_arena()
    theirs.callback(os.close, fd)
    return fd


def _execute(descriptors: tuple[int, ...], output_fd: int, threads: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: a user's file must not stand in for a module of the same name.
        [sys.executable, "-P", "-u", "-m", "salver.engine.worker", str(os.getpid())]
        + [str(fd) for fd in descriptors],
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        pass_fds=descriptors,
        # Ctrl-C is for the server, which then lets its workers finish.
        start_new_session=True,
        env=dict.fromkeys(_THREAD_VARIABLES, str(threads)) | os.environ,
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by signal {-status} ({signal.strsignal(-status)})"
