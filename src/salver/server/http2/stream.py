"""One HTTP/2 stream, and what whoever answers requests must offer to the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import deque

    from salver.server.http2.head import RequestHead
    from salver.server.http2.hpack import HeaderListTooLarge
    from salver.types import Buffer


class Stream:
    """A request and its answer. Made by the connection; `call` belongs to the handler.

    Windows are in bytes. `held` counts received body bytes that nobody has consumed; `queued` those
    of the answer that still wait to be written. `stalled_since` is when a sweep first found that
    the client lets nothing more of it be sent (0: it does).
    """

    __slots__ = (
        "body_left", "call", "closed", "ending", "held", "id", "lead", "paused", "queue", "queued",
        "receive_window", "receiving", "send_window", "stalled_since", "tail", "waiting",
    )  # fmt: skip

    def __init__(self, stream_id: int, send_window: int, receive_window: int) -> None:
        self.id = stream_id
        self.call: Any = None
        self.closed = False
        # The request.
        self.receiving = True
        self.receive_window = receive_window
        self.body_left = -1
        self.held = 0
        self.paused = False
        # The answer: header frames, then data, then trailer frames; `ending` when it is complete.
        self.send_window = send_window
        self.waiting = False
        self.ending = False
        self.lead = b""
        self.queue: deque[Buffer] | None = None
        self.queued = 0
        self.stalled_since = 0
        self.tail = b""


class Handler(Protocol):
    """Receives what a connection reads. Answers may be sent from inside every method."""

    def on_request(self, stream: Stream, head: RequestHead, body: Buffer | None) -> None:
        """A new request. `body` is all of it, valid only during the call; None: it is to come."""
        ...

    def refusal(self, error: HeaderListTooLarge) -> bytes:
        """The header block that answers a request whose head says more than is allowed."""
        ...

    def on_data(self, stream: Stream, data: Buffer, end_stream: bool) -> None:
        """A piece of the body, maybe empty at the end. `data` is valid only during the call."""
        ...

    def on_reset(self, stream: Stream, code: int) -> None:
        """The stream is gone before its answer was complete; whatever is still sent is dropped."""
        ...

    def on_writable(self, stream: Stream) -> None:
        """All that was sent on an unfinished answer has been taken for writing."""
        ...
