"""The few interfaces that everything passes through, with their contracts.

A plug-in implements one of them; `salver.testing` checks that it keeps the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from salver.types import NO_CONTEXT, Call, CallContext, ModelRef, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from salver.config import ModelConfig
    from salver.errors import SalverError
    from salver.signature import Signature
    from salver.types import Batch, Rows, Tensors, Work

    Results = Rows | Sequence[Tensors | SalverError | None]


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine must know of a model to place, batch, re-run and kill it rightly."""

    holds_gil: bool = True
    """Running it keeps other Python threads waiting: inline or in a process, never in a thread."""
    idempotent: bool = True
    """May be run again after a worker died with it."""
    stateful: bool = False
    """Its answers depend on earlier calls: the fronts share one home for it, and do not each load
    it. For runtimes of plug-ins; what runs in workers has one home anyway.
    """
    thread_safe: bool = False
    """`run` may be called from several threads at once."""
    max_batch: int = 0
    """Most rows in one run; 0 for no limit of the model's own."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime can tell of a file without running code from it."""

    runtime: str
    file: str
    size_bytes: int = 0
    trust: str = ""
    """Why opening it needs trust; empty if it does not."""
    signature: Signature | None = None
    detail: str = ""
    """What the file is, where a runtime takes several kinds."""
    problem: str = ""
    """Why loading it will fail, as far as that can be seen; empty if nothing speaks against it."""


class LoadSpec(msgspec.Struct, kw_only=True):
    """What to load and how.

    `threads` is the CPU budget of one instance; `trusted` says that code from the files may run;
    `cancelled()` turns true when the load is no longer wanted.
    """

    path: Path
    ref: ModelRef
    config: ModelConfig
    device: str = "cpu"
    threads: int = 1
    trusted: bool = False
    cancelled: Callable[[], bool] = lambda: False
    caller: Caller | None = None
    warn: Callable[[str], None] = lambda message: None


class Emit(Protocol):
    """Pushes one stream item of call `index`; blocks while its reader gives no credit."""

    def __call__(self, index: int, item: Tensors) -> None: ...


class Model(Protocol):
    """A loaded model. Lives in one process; `run` is called from one thread unless thread-safe."""

    signature: Signature
    traits: Traits

    def run(self, work: Work, emit: Emit) -> Results:
        """Runs the gathered inputs once.

        Returns `Rows`, or one item per call: its outputs, its own error, or None if it streamed.
        Raising fails the whole batch, which the engine then bisects.
        """
        ...

    def cancel(self, work: Work, index: int) -> None:
        """Asks a running call to end early. Any thread, best effort."""
        ...

    def close(self) -> None: ...


class Runtime(Protocol):
    """Loads the files of one framework. Stateless."""

    name: str

    def probe(self, path: Path, config: ModelConfig) -> Probe | None:
        """Tells whether it can load `path`, without running code from it; None if it cannot."""
        ...

    def load(self, spec: LoadSpec) -> Model:
        """Blocking, off the loop. Never changes the device silently.

        Raises: LoadFailed and its kinds.
        """
        ...


class Slot(msgspec.Struct, frozen=True):
    """An instance that asks for work. A call of more than `max_size` is not for it; 0 takes any."""

    max_size: int = 0


ANY_SLOT: Final = Slot()
"""Takes calls of any size."""


class Scheduler(Protocol):
    """Pure bookkeeping: turns queued calls into batches when an instance asks."""

    def add(self, call: Call, now: int) -> None:
        """Owns the call on return. Raises: Overloaded."""
        ...

    def next(self, slot: Slot, now: int) -> Batch | None:
        """The next batch for `slot`; None when there is nothing to run yet.

        Its `reason` is counted: it must be one of `observe.statistics.REASONS`.
        """
        ...

    def expire(self, now: int) -> tuple[Sequence[Call], int | None]:
        """Calls whose time is over, no longer owned; and when to look again (None: no need)."""
        ...

    def remove(self, call: Call) -> bool:
        """Forgets a call. False: it is already in a batch."""
        ...

    def finished(self, batch: Batch, cost_ns: int, now: int) -> None:
        """Told when a batch ended: frees sequence slots, learns cost per size."""
        ...

    def __len__(self) -> int:
        """Calls that wait."""
        ...


class Instance(Protocol):
    """One slot that runs one batch at a time. All methods are called on the loop."""

    def start(self, work: Work, emit: Emit, done: Done) -> None:
        """Starts a run; on the loop, `emit` gets stream items and then `done` the end, once."""
        ...

    def cancel(self, index: int) -> None:
        """Asks call `index` of the present run to end early. Best effort; `done` still comes."""
        ...

    def pause(self, index: int) -> None:
        """Lets the model wait, after a few more items, until the reader of this call resumes."""
        ...

    def resume(self, index: int) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class Done(Protocol):
    """Receives what a run gave: results, or the exception that failed the whole batch.

    `cost_ns` is what the model itself took, without the way to the instance and back.
    """

    def __call__(self, results: Results | Exception, cost_ns: int) -> None: ...


class Sink(Protocol):
    """Where a call's answer goes. Called on the loop, never from inside `submit`."""

    def push(self, call: Call, item: Response | SalverError, final: bool) -> None:
        """Takes one item. After `final`, which comes exactly once, the call is over."""
        ...


class Target(Protocol):
    """What stands behind a lease."""

    def submit(self, call: Call, now: int) -> None:
        """Accepts the call, without blocking: from here on its sink gets exactly one final.

        Raises: SalverError when it is not accepted; then the sink gets nothing.
        """
        ...

    def cancel(self, call: Call, why: SalverError) -> None:
        """Idempotent; the sink still gets its final."""
        ...

    def pause(self, call: Call) -> None:
        """Its reader is slow: lets the stream wait, after a few more items, until `resume`."""
        ...

    def resume(self, call: Call) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class Lease(Protocol):
    """What keeps a generation alive while calls use it."""

    @property
    def target(self) -> Target: ...

    def end(self) -> None:
        """Gives the lease back; exactly once per call."""
        ...


class Caller(Protocol):
    """How user code calls other models: deadline, priority and depth are inherited."""

    def __call__(
        self, ref: ModelRef, request: Request, context: CallContext = NO_CONTEXT, depth: int = 0
    ) -> Tensors:
        """Blocks until the answer is there. Not for the loop.

        Raises: SalverError as the called model's client would see it.
        """
        ...


class Head(Protocol):
    """The head of a request, whatever carried it. Header names are lower-case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class Operation(msgspec.Struct, gc=False):
    """What a request wants. `encoding` is the protocol's own note for its answer."""

    encoding: Any = None


class Infer(Operation, kw_only=True, gc=False):
    """Run a model, for at most `timeout_ns` (0: no limit of its own). 1 is the most urgent
    `priority`; 0 is the model's default.
    """

    ref: ModelRef
    request: Request
    timeout_ns: int = 0
    priority: int = 0


class Query(Operation):
    """Read state: `name` is a key of the answering table in `server/admin.py`."""

    name: str = ""
    arguments: Mapping[str, Any] = {}


class Command(Operation):
    """Change state: `load`, `unload` and whatever else an administrator may do."""

    name: str = ""
    arguments: Mapping[str, Any] = {}


class HttpAnswer(msgspec.Struct, frozen=True):
    """One HTTP answer: status, headers as wire bytes (each line with CRLF), and a sequence of body
    parts; or a generator of them, if they take long to write: a millisecond's work each.

    The connection adds the status line, the length and what concerns the connection.
    """

    status: int
    headers: bytes
    body: Any


JSON_HEADERS = b"Content-Type: application/json\r\n"


class Endpoint(NamedTuple):
    """One route of a protocol.

    `path` is a template such as `/v2/models/{model}/infer`; `decode(head, arguments, body)` turns a
    request into an operation, `encode(operation, result)` its result into the answer. `stream`
    turns each item of a streaming method into a piece of a chunked body; None: it cannot stream.
    What `is_inference` and cannot be decoded counts among the failed requests of its model.
    What is not `is_offered` only refuses, with a remedy, and is not described to clients.
    """

    methods: tuple[str, ...]
    path: str
    summary: str
    decode: Callable[[Head, Mapping[str, str], Any], Operation]
    encode: Callable[[Any, Any], HttpAnswer]
    stream: Callable[[Any, Any], bytes] | None = None
    is_offered: bool = True
    is_inference: bool = False


class HttpProtocol(Protocol):
    """A dialect over HTTP: bytes to operations and back. No sockets, no engine."""

    name: str

    def endpoints(self) -> Sequence[Endpoint]: ...

    def refuse(self, error: SalverError) -> HttpAnswer:
        """The dialect's form of an error."""
        ...


class VersionOnDisk(NamedTuple):
    """A version that a source offers. `stamp` changes when its files do.

    `problem` is why it cannot be loaded, such as a mistake in its `model.yaml`; `trusted` that
    whoever started the server named this very code.
    """

    ref: ModelRef
    path: Path
    stamp: str
    config: ModelConfig
    problem: SalverError | None = None
    trusted: bool = False


class Source(Protocol):
    """Says which models and versions exist. Blocking, off the loop."""

    def scan(self) -> Mapping[ModelRef, VersionOnDisk]:
        """A complete listing or an error, never a partial one."""
        ...

    def older(self, name: str) -> Sequence[VersionOnDisk]:
        """Versions that are there but not listed, as newer ones are: the newest first. They serve
        while none that is listed can be loaded.
        """
        ...
