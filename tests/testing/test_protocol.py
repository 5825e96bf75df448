"""Each way to break the contract of HTTP protocols is caught."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from salver.errors import Internal, InvalidInput, Overloaded
from salver.interfaces import Endpoint, HttpAnswer, Infer, Query
from salver.testing import check_protocol
from salver.types import ModelRef, Object, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from salver.errors import SalverError

JSON = b"Content-Type: application/json\r\n"
PATH = "/call/{model}"


def decode(head: Any, arguments: Any, body: Any) -> Infer:
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise InvalidInput("not JSON") from None
    return Infer(ref=ModelRef(arguments["model"]), request=Request(Object("auto", value)))


def encode(operation: Any, response: Any) -> HttpAnswer:
    values = {name: response.tensor(name).array().tolist() for name in response.names}
    return HttpAnswer(200, JSON, [json.dumps(values).encode()])


def stream(operation: Any, response: Any) -> bytes:
    return encode(operation, response).body[0] + b"\n"  # type: ignore[no-any-return]


def state(head: Any, arguments: Any, body: Any) -> Query:
    return Query(name="live")


CALL = Endpoint(("POST",), PATH, "A call.", decode, encode, stream)
STATE = Endpoint(("GET",), "/state", "Whether it lives.", state, encode)


class Dialect:
    """JSON in, JSON out."""

    name = "dialect"

    def __init__(self, *endpoints: Endpoint) -> None:
        self._endpoints = endpoints or (CALL, STATE)

    def endpoints(self) -> Sequence[Endpoint]:
        return self._endpoints

    def refuse(self, error: SalverError) -> HttpAnswer:
        return HttpAnswer(400, JSON, [json.dumps({"error": error.message}).encode()])


def call(**changes: Any) -> Dialect:
    return Dialect(CALL._replace(**changes), STATE)


def refusing(status: int = 400, headers: Any = JSON, body: Any = (b"{}",)) -> Dialect:
    dialect = Dialect()
    dialect.refuse = lambda error: HttpAnswer(status, headers, body)  # type: ignore[method-assign]
    return dialect


class Nameless(Dialect):
    name = ""


class Routeless(Dialect):
    def endpoints(self) -> Sequence[Endpoint]:
        return []


class ChoosyRefuser(Dialect):
    def refuse(self, error: SalverError) -> HttpAnswer:
        return {InvalidInput: super().refuse(error)}[type(error)]


class InjectedRefuser(Dialect):
    def refuse(self, error: SalverError) -> HttpAnswer:
        reason = error.message.encode()
        return HttpAnswer(400, JSON + b"X-Reason: " + reason + b"\r\n", [])


def raising(error: Exception) -> Any:
    def decode_or_raise(head: Any, arguments: Any, body: Any) -> Infer:
        if not len(body):
            raise error
        return decode(head, arguments, body)

    return decode_or_raise


def giving(operation: Any) -> Any:
    return lambda head, arguments, body: operation


def bytes_only(head: Any, arguments: Any, body: Any) -> Infer:
    return decode(head, arguments, body.strip())


def infer(**changes: Any) -> Any:
    return giving(Infer(**{"ref": ModelRef("m"), "request": Request(Object("auto", 1)), **changes}))


def test_a_good_protocol_passes() -> None:
    check_protocol(Dialect(), {PATH: b'{"a": [1, 2]}'})


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        (Nameless(), "HttpProtocol.name is text"),
        (Routeless(), "endpoints gives at least one"),
        (call(methods=("post",)), "HTTP methods in upper case"),
        (call(methods=()), "HTTP methods in upper case"),
        (call(path="call/{model}"), "Endpoint.path is a template"),
        (call(path="/{model}/{model}"), "Endpoint.path is a template"),
        (call(path="/{model/"), "Endpoint.path is a template"),
        (call(summary=""), "summary is one line"),
        (Dialect(CALL, CALL._replace(path="/call/{name}")), "Endpoints differ in method or path"),
        (call(path="/other"), r"needs requests by their endpoint; no \['/call/{model}'\]"),
        (call(decode=raising(KeyError("a"))), "raises SalverErrors only.*; it raised KeyError"),
        (call(decode=raising(Internal("oh"))), "blames the client .*; /call/{model}: Internal"),
        (call(decode=raising(Overloaded("oh"))), "blames the client"),
        (call(decode=bytes_only), "takes a good request as any buffer; it raised AttributeError"),
        (call(decode=giving(None)), "gives an Infer, a Query or a Command"),
        (call(decode=giving(Query())), "Query.name and Command.name are keys"),
        (call(decode=infer(ref="m")), "Infer has a ModelRef and a Request"),
        (call(decode=infer(timeout_ns=-1)), "whole numbers from 0"),
        (call(decode=infer(priority=0.5)), "whole numbers from 0"),
        (call(encode=lambda operation, response: 1 / 0), "encodes the response to a good request"),
        (call(encode=lambda operation, response: {}), "gives an HttpAnswer"),
        (call(stream=lambda operation, response: "text"), "Endpoint.stream gives bytes"),
        (ChoosyRefuser(), "renders any SalverError; it raised KeyError"),
        (refusing(status=200), "has a status from 400 to 599; 200"),
        (refusing(headers="A: b\r\n"), "headers as lines that end in CRLF"),
        (refusing(headers=b"A: b"), "headers as lines that end in CRLF"),
        (refusing(headers=b"A b\r\n"), "headers as lines that end in CRLF"),
        (refusing(headers=b"Content-Length: 2\r\n"), "leaves to the connection"),
        (refusing(body=["text"]), "body of buffers"),
        (refusing(body=[memoryview(b"abcd")[::2]]), "body of buffers; a part is not contiguous"),
    ],
)
def test_a_broken_protocol_is_caught(dialect: Dialect, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_protocol(dialect, {PATH: b'{"a": [1, 2]}'})


def test_headers_made_of_messages_are_caught() -> None:
    with pytest.raises(AssertionError, match="headers as lines"):
        check_protocol(InjectedRefuser(), {})
