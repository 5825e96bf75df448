"""The contract of HTTP protocols: routes, decoding of anything, encoding, and refusals."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from salver import errors
from salver.errors import InvalidInput, SalverError
from salver.interfaces import Command, Endpoint, HttpAnswer, Infer, Operation, Query
from salver.signature import ANY, Method, TensorSpec
from salver.testing.clauses import expect, only
from salver.types import FP32, ModelRef, Request, Response, Rows, Tensor, Tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from salver.interfaces import Head, HttpProtocol

_TOKEN: Final = re.compile(r"[A-Z]+")
_ARGUMENT: Final = re.compile(r"\{(\w+)\}")
_HEADER: Final = re.compile(rb"[A-Za-z0-9-]+: [^\r\n\0]*")
_OF_CONNECTION: Final = {b"connection", b"content-length", b"date", b"transfer-encoding"}
_ODD_BODIES: Final = (
    b"", b"{}", b"[]", b"null", b"0", b'"a"', b"{", b"[" * 2000, b"\xff\xfe\0", b"a,b\n1,2\n",
    b"1e999", b'{"a": NaN}', b'{"inputs": {}}', b'{"inputs": [null]}', b"\x00" * 100,
)  # fmt: skip
_ODD_HEADERS: Final[tuple[Mapping[str, str], ...]] = (
    {},
    {"content-type": "application/json"},
    {"content-type": "text/csv; charset=latin-1"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": ";;", "inference-header-content-length": "-1"},
    {"content-type": "application/octet-stream", "inference-header-content-length": "4"},
)
_ODD_MESSAGES: Final = ("plain", 'with "quotes" and\r\na second line', "Ünïcode ✓ \ud800", "")
_NUM_MUTATIONS: Final = 40


class OwnError(InvalidInput):
    """An error of a plug-in's own, which is refused as what it is derived from."""


_KINDS: Final = [
    *(k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SalverError)),
    OwnError,
]


@dataclass
class PlainHead:
    """A request's head, as `interfaces.Head` describes it."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


def check_protocol(protocol: HttpProtocol, requests: Mapping[str, bytes], *, seed: int = 0) -> None:
    """Checks `protocol`: its routes, what it makes of odd requests, its answers and its refusals.

    `requests` are bodies of good requests by the path of their endpoint; what is decoded from them
    is encoded again, and bodies near to them are decoded too (`seed` repeats them).
    Raises: AssertionError.
    """
    clause = "HttpProtocol.name is text"
    expect(isinstance(protocol.name, str) and bool(protocol.name), clause, repr(protocol.name))
    with only("HttpProtocol.endpoints raises nothing"):
        endpoints = list(protocol.endpoints())
    _check_routes(endpoints)
    paths = [endpoint.path for endpoint in endpoints]
    unknown = sorted(set(requests) - set(paths))
    expect(not unknown, "check_protocol needs requests by their endpoint", f"no {unknown}")
    chance = random.Random(seed)
    for endpoint in endpoints:
        good = requests.get(endpoint.path)
        if good is not None:
            _check_good(endpoint, good)
        _check_odd(endpoint, good or b"{}", chance)
    for kind in _KINDS:
        for message in _ODD_MESSAGES:
            _check_refusal(protocol, kind(message, retry_after_ms=1500))


def _check_routes(endpoints: list[Endpoint]) -> None:
    expect(bool(endpoints), "HttpProtocol.endpoints gives at least one", "there are none")
    seen: set[tuple[str, str]] = set()
    for endpoint in endpoints:
        path = endpoint.path
        clause = "Endpoint.methods are HTTP methods in upper case"
        is_known = bool(endpoint.methods) and all(map(_TOKEN.fullmatch, endpoint.methods))
        expect(is_known, clause, f"{path}: {endpoint.methods!r}")
        names = _ARGUMENT.findall(path)
        clause = "Endpoint.path is a template such as /v2/models/{model} with names that differ"
        is_template = path.startswith("/") and len(set(names)) == len(names)
        is_template &= not re.search(r"[{}?#\s]", _ARGUMENT.sub("", path))
        expect(is_template, clause, repr(path))
        clause = "Endpoint.summary is one line"
        is_line = bool(endpoint.summary) and "\n" not in endpoint.summary
        expect(is_line, clause, f"{path}: {endpoint.summary!r}")
        for method in endpoint.methods:
            route = method, _ARGUMENT.sub("{}", path)
            expect(
                route not in seen, "Endpoints differ in method or path", f"{method} {path} twice"
            )
            seen.add(route)


def _decode(endpoint: Endpoint, body: Any, headers: Mapping[str, str]) -> Operation:
    arguments = dict.fromkeys(_ARGUMENT.findall(endpoint.path), "m")
    path = _ARGUMENT.sub("m", endpoint.path)
    head: Head = PlainHead(endpoint.methods[0], path, "", headers)
    operation = endpoint.decode(head, arguments, body)
    _check_operation(endpoint.path, operation)
    return operation


def _check_operation(path: str, operation: Operation) -> None:
    where = f"{path}: {operation!r}"
    is_known = type(operation) in (Infer, Query, Command)
    expect(is_known, "Endpoint.decode gives an Infer, a Query or a Command", where)
    if isinstance(operation, Infer):
        is_whole = isinstance(operation.ref, ModelRef) and isinstance(operation.request, Request)
        expect(is_whole, "Infer has a ModelRef and a Request", where)
        clause = "Infer.timeout_ns and Infer.priority are whole numbers from 0"
        numbers = (operation.timeout_ns, operation.priority)
        expect(all(type(n) is int and n >= 0 for n in numbers), clause, where)
    elif isinstance(operation, Query | Command):
        expect(bool(operation.name), "Query.name and Command.name are keys", where)


def _check_good(endpoint: Endpoint, body: bytes) -> None:
    """Every form in which the connection hands a body over; then the answer."""
    headers = {"content-length": str(len(body))}
    for form in (bytes, bytearray, lambda body: memoryview(bytearray(body))):
        with only(f"Endpoint.decode of {endpoint.path} takes a good request as any buffer"):
            operation = _decode(endpoint, form(body), headers)
    if not isinstance(operation, Infer):
        return
    response = _response(operation)
    with only(f"Endpoint.encode of {endpoint.path} encodes the response to a good request"):
        answer = endpoint.encode(operation, response)
    _check_answer(f"Endpoint.encode of {endpoint.path}", answer, range(200, 300))
    if endpoint.stream is not None:
        with only(f"Endpoint.stream of {endpoint.path} encodes an item"):
            piece = endpoint.stream(operation, response)
        is_piece = isinstance(piece, bytes) and bool(piece)
        expect(is_piece, "Endpoint.stream gives bytes", f"{endpoint.path}: {piece!r}")


def _response(operation: Infer) -> Response:
    """Two rows of two numbers for each output that was asked for."""
    names = operation.request.outputs or ("output",)
    spec = [TensorSpec(name=name, dtype=FP32, shape=(ANY, 2)) for name in names]
    method = Method(inputs=(), outputs=tuple(spec), batching="rows")
    values = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    tensors = Tensors({name: Tensor.of(values) for name in names})
    return Response(Rows(tensors), ModelRef("m", "1"), method, tuple(names))


def _check_odd(endpoint: Endpoint, good: bytes, chance: random.Random) -> None:
    """Whatever comes, it is decoded or refused."""
    clause = f"Endpoint.decode of {endpoint.path} raises SalverErrors only"
    for body in (*_ODD_BODIES, *_mutations(good, chance)):
        for headers in _ODD_HEADERS:
            try:
                with only(f"{clause}, also for {body[:80]!r} with {dict(headers)}", SalverError):
                    _decode(endpoint, body, headers)
            except SalverError as error:
                expect(
                    error.blame == "client",
                    "Endpoint.decode blames the client for a request that is wrong",
                    f"{endpoint.path}: {type(error).__name__} for {body[:80]!r}",
                )


def _mutations(body: bytes, chance: random.Random) -> Iterator[bytes]:
    for _ in range(_NUM_MUTATIONS if body else 0):
        start, length = chance.randrange(len(body)), chance.randrange(4)
        piece = bytes(chance.choice(b'0-1"{}[],:\\\xff\x00 e.') for _ in range(chance.randrange(3)))
        yield body[:start] + piece + body[start + length :]


def _check_refusal(protocol: HttpProtocol, error: SalverError) -> None:
    what = f"HttpProtocol.refuse of {type(error).__name__}({error.message!r})"
    with only(f"{what} renders any SalverError"):
        answer = protocol.refuse(error)
    _check_answer(what, answer, range(400, 600))


def _check_answer(what: str, answer: HttpAnswer, statuses: range) -> None:
    expect(isinstance(answer, HttpAnswer), f"{what} gives an HttpAnswer", repr(answer))
    clause = f"{what} has a status from {statuses.start} to {statuses.stop - 1}"
    expect(answer.status in statuses, clause, repr(answer.status))
    clause = f"{what} has headers as lines that end in CRLF"
    is_bytes = isinstance(answer.headers, bytes)
    expect(is_bytes and answer.headers[-2:] in (b"", b"\r\n"), clause, repr(answer.headers))
    for line in answer.headers.split(b"\r\n")[:-1]:
        expect(_HEADER.fullmatch(line) is not None, clause, repr(line))
        name = line.partition(b":")[0].lower()
        clause_of = f"{what} leaves to the connection what concerns it"
        expect(name not in _OF_CONNECTION, clause_of, repr(line))
    clause = f"{what} has a body of buffers"
    with only(clause, SalverError):
        parts = [memoryview(part) for part in answer.body]
    expect(all(part.c_contiguous for part in parts), clause, "a part is not contiguous")
