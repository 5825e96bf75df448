from __future__ import annotations

import asyncio
import gzip
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from salver.server.compression import INFLATED_AT_ONCE, MAX_INFLATION
from salver.types import Tensor

LIVE = "/v2/health/live"


def values(answer):
    return answer.json["outputs"][0]["data"]


def chunked(*chunks, trailers=b""):
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join([*parts, b"0\r\n", trailers, b"\r\n"])


def test_answers_an_inference_in_one_write(door):
    here = door()
    client = here.connect()
    (answer,) = client.send(here.request(here.infer(1, 2, 3, 4)))
    assert answer.status == 200
    assert values(answer) == [1.0, 2.0, 3.0, 4.0]
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
    }
    assert client.transport.writes == 1
    assert not client.transport.ended


def test_answers_of_one_turn_leave_in_one_write_and_in_order(door):
    here = door()
    client = here.connect()
    found = client.send(b"".join(here.request(here.infer(i, 0, 0, 0)) for i in range(20)))
    assert [values(answer)[0] for answer in found] == list(range(20))
    assert client.transport.writes == 1


def test_an_early_answer_waits_for_the_ones_before_it(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    assert not client.send(here.request(here.infer()) + here.request(method="GET", path=LIVE))
    here.engine.answer(here.engine.calls[0])
    here.turn()
    first, second = client.answers()
    assert values(first)
    assert second.json == {"live": True}


def test_calls_that_end_in_another_order_are_answered_in_theirs(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(b"".join(here.request(here.infer(i, 0, 0, 0)) for i in range(3)))
    for index in (2, 0, 1):
        here.engine.answer(here.engine.calls[index])
    here.turn()
    assert [values(answer)[0] for answer in client.answers()] == [0, 1, 2]


def test_a_pipeline_is_bounded_and_goes_on_when_answers_leave(door):
    here = door(pipelined=4)
    here.engine.holds = True
    client = here.connect()
    client.feed(b"".join(here.request(here.infer(i, 0, 0, 0)) for i in range(10)))
    assert len(here.engine.calls) == 4
    here.engine.holds = False
    for call in list(here.engine.calls):
        here.engine.answer(call)
    here.turn(20)
    assert [values(answer)[0] for answer in client.answers()] == list(range(10))


def test_a_flood_of_requests_stops_being_read_and_is_answered_in_the_end(door):
    here = door(pipelined=4)
    here.engine.holds = True
    client = here.connect()
    client.feed(here.request(here.infer()) * 20_000)
    assert not client.transport.reading
    assert len(client.connection._rest) < 1 << 20
    assert client.unread
    here.engine.holds = False
    for call in list(here.engine.calls):
        here.engine.answer(call)
    here.turn(20)
    assert len(client.answers()) > 4


def test_many_instant_answers_do_not_leave_the_loop_to_one_client(door):
    here = door(pipelined=4)
    client = here.connect()
    client.feed(here.request(method="GET", path=LIVE) * 100)
    assert len(client.connection._out) <= 10
    here.turn(200)
    assert len(client.answers()) == 100


def test_nothing_is_started_for_a_client_that_does_not_read(door):
    here = door()
    client = here.connect()
    client.transport.window = 0
    big = b'{"inputs":[{"name":"x","shape":[1,60000],"datatype":"FP32","data":[%b]}]}' % (
        b",".join([b"1"] * 60000)
    )
    client.send(here.request(big))
    assert not client.transport.sent
    client.send(here.request(here.infer()))
    assert len(here.engine.calls) == 1
    client.transport.read_on(1 << 60)
    here.turn()
    assert [answer.status for answer in client.answers()] == [200, 200]


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: foo, Close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
        ("1.0", "Connection: keep-alive, close\r\n", False),
    ],
)
def test_keep_alive_follows_the_version(door, version, connection, stays):
    client = door().connect()
    head = f"GET {LIVE} HTTP/{version}\r\nHost: here\r\n{connection}\r\n"
    (answer,) = client.send(head.encode())
    assert answer.status == 200
    assert (client.transport.ended == "") is stays
    expected = None if stays and version == "1.1" else "keep-alive" if stays else "close"
    assert answer.headers.get("connection") == expected


def test_nothing_after_a_closing_request_is_answered(door):
    here = door()
    client = here.connect()
    closing = here.request(method="GET", path=LIVE, Connection="close")
    found = client.send(here.request(method="GET", path=LIVE) + closing * 2)
    assert [answer.headers.get("connection") for answer in found] == [None, "close"]


def test_head_gets_the_length_and_no_body(door):
    here = door()
    client = here.connect()
    client.feed(here.request(method="HEAD", path=LIVE))
    here.turn()
    head, _, body = client.transport.sent.partition(b"\r\n\r\n")
    assert b"Content-Length: 13" in head
    assert not body


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "*"])
def test_options_tells_the_methods(door, path):
    here = door(cors_origins=("https://a.example",))
    client = here.connect()
    raw = here.request(
        method="OPTIONS",
        path=path,
        Origin="https://a.example",
        Access_Control_Request_Method="POST",
    )
    (answer,) = client.send(raw)
    assert answer.status == 204
    assert "OPTIONS" in answer.headers["allow"]
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["vary"] == "Origin"
    allowed = set(answer.headers["access-control-allow-headers"].split(", "))
    assert allowed > {"Authorization", "Content-Encoding", "Inference-Header-Content-Length"}
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("trailer", [b"X\0: 1", b"X: \0", b"X Y: 1", b": 1", b"no colon", b" X: 1"])
def test_a_trailer_is_a_header_field(door, trailer):
    here = door()
    body = chunked(here.infer(), trailers=trailer + b"\r\n")
    (answer,) = here.connect().send(here.request(Transfer_Encoding="chunked") + body)
    assert answer.status == 400
    assert "trailer" in answer.json["error"]


def test_a_preflight_needs_no_key_and_other_origins_get_no_permission(door):
    here = door(cors_origins=("https://a.example",), api_key="k")
    raw = here.request(method="OPTIONS", Origin="https://b.example")
    (answer,) = here.connect().send(raw)
    assert answer.status == 204
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [{}, {"Origin": "https://a.example"}, {"Origin": "https://b"}])
def test_what_depends_on_the_origin_says_so(door, origin):
    here = door(cors_origins=("https://a.example",))
    (answer,) = here.connect().send(here.request(here.infer(), **origin))
    assert answer.headers["vary"] == "Origin"
    is_allowed = origin.get("Origin") == "https://a.example"
    assert ("access-control-allow-origin" in answer.headers) == is_allowed
    exposed = answer.headers.get("access-control-expose-headers", "")
    assert ("Inference-Header-Content-Length" in exposed) == is_allowed


def test_what_every_origin_may_read_is_the_same_for_all(door):
    here = door(cors_origins=("*",))
    client = here.connect()
    one, other = client.send(
        here.request(here.infer()) + here.request(here.infer(), Origin="https://b")
    )
    assert one.headers == other.headers
    assert one.headers["access-control-allow-origin"] == "*"
    assert "vary" not in one.headers


def test_waits_for_the_body_only_after_saying_so(door):
    here = door()
    client = here.connect()
    body = here.infer()
    head, _, _ = here.request(body, Expect="100-continue").partition(b"\r\n\r\n")
    client.feed(head + b"\r\n\r\n")
    here.turn()
    assert client.transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.transport.sent = b""
    assert client.send(body)[0].status == 200


def test_says_nothing_when_the_body_is_already_there(door):
    here = door()
    (answer,) = here.connect().send(here.request(here.infer(), Expect="100-continue"))
    assert answer.status == 200


def test_continue_waits_for_earlier_answers(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    body = here.infer()
    head, _, _ = here.request(body, Expect="100-continue").partition(b"\r\n\r\n")
    client.feed(here.request(body) + head + b"\r\n\r\n")
    here.turn()
    assert not client.transport.sent
    here.engine.answer(here.engine.calls[0])
    here.turn()
    first, _, second = client.transport.sent.partition(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert not second


def test_refuses_instead_of_asking_for_the_body(door):
    here = door(body_bytes=10)
    client = here.connect()
    head, _, _ = here.request(here.infer(), Expect="100-continue").partition(b"\r\n\r\n")
    (answer,) = client.send(head + b"\r\n\r\n")
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


def test_a_body_that_is_too_large_costs_no_memory(door):
    here = door(body_bytes=1 << 20)
    client = here.connect()
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
    (answer,) = client.send(head)
    assert answer.status == 413
    assert "1048576" in answer.json["error"]
    assert client.connection._body is None
    assert client.transport.half_closed
    client.feed(b"x" * 100_000)
    assert client.connection._rest == b""


def test_compressed_bodies_count_as_what_may_become_of_them(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    body = gzip.compress(here.infer(*(i**0.5 for i in range(300))))
    assert (1 << 20) / MAX_INFLATION < len(body) < INFLATED_AT_ONCE
    raw = here.request(body, Content_Encoding="gzip")
    client.send(raw * 5)
    assert len(here.engine.calls) == 1
    for number in range(5):
        here.engine.answer(here.engine.calls[number])
        here.turn()
    assert len(client.answers()) == 5


@pytest.mark.parametrize("is_chunked", [False, True])
def test_large_bodies_are_not_held_by_the_dozen_for_a_client_that_pipelines(door, is_chunked):
    here = door()
    here.engine.holds = True
    client = here.connect()
    body = here.infer(1) + b" " * 200_000
    if is_chunked:
        raw = here.request(Transfer_Encoding="chunked") + chunked(body[:1000], body[1000:])
    else:
        raw = here.request(body)
    client.send(raw * 20)
    assert len(here.engine.calls) == 6
    for _ in range(20):
        for call in here.engine.calls:
            if not call.ended:
                here.engine.answer(call)
        here.turn()
        client.feed(b"")
    assert len(client.answers()) == 20


def test_a_body_of_several_reads_is_received_in_place(door):
    here = door()
    client = here.connect()
    data = [float(i) for i in range(20_000)]
    raw = here.request(here.infer(*data))
    client.feed(raw[:50_000])
    assert client.connection._body is not None
    (answer,) = client.send(raw[50_000:])
    assert values(answer) == data


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_bodies(door, size):
    here = door()
    body = here.infer(1, 2, 3, 4)
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    raw = here.request(Transfer_Encoding="chunked") + chunked(*chunks, trailers=b"X-Sum: 1\r\n")
    found = here.connect().send(raw * 2)
    assert [values(answer) for answer in found] == [[1.0, 2.0, 3.0, 4.0]] * 2


def test_a_chunked_body_cannot_change_the_protocol(door):
    # Behind a proxy, whoever chose the body would otherwise smuggle requests as HTTP/2.
    here = door()
    client = here.connect()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    raw = here.request(Transfer_Encoding="chunked") + chunked(preface)
    start = raw.index(preface)
    assert not client.send(raw[:start])
    (answer,) = client.send(raw[start:])
    assert answer.status == 400


def test_a_chunked_body_that_grows_too_large_is_refused_on_the_way(door):
    here = door(body_bytes=1000)
    client = here.connect()
    raw = here.request(Transfer_Encoding="chunked") + chunked(b"x" * 600, b"x" * 600)
    (answer,) = client.send(raw)
    assert answer.status == 413
    assert client.transport.half_closed


HOST = b"Host: a\r\n"
POST = b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST
SMUGGLED = {
    "length and coding": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\n",
    "a signed length": POST + b"Content-Length: +5\r\n\r\n",
    "a negative length": POST + b"Content-Length: -5\r\n\r\n",
    "a hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\n",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a length beyond numbers": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a coding in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding that looks like it": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "a coding with a strange space": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "a coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "a folded line": POST + b"A: b\r\n c\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 5\r\n\r\n",
    "a space before the name": POST + b" A: b\r\n\r\n",
    "a bare line feed": POST + b"A: b\nContent-Length: 5\r\n\r\n",
    "a bare carriage return": POST + b"A: b\rContent-Length: 5\r\n\r\n",
    "a NUL": POST + b"A: b\x00c\r\n\r\n",
    "a line without a colon": POST + b"Content-Length\r\n\r\n",
    "no name": POST + b": 5\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a version that there is not": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2 without its preface": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a method that there is not": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is none": b"GET a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("raw", SMUGGLED.values(), ids=SMUGGLED)
def test_an_ambiguous_head_is_refused_and_nothing_after_it_is_believed(door, raw):
    here = door()
    client = here.connect()
    (answer,) = client.send(raw + here.request(here.infer()))
    assert answer.status in (400, 501)
    assert answer.headers["connection"] == "close"
    assert set(answer.json) == {"error"}
    assert not here.engine.calls
    assert client.transport.half_closed


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n",
        b"5_0\r\nhello\r\n",
        b"11111111111111111\r\n",
        b"ffffffffffffffff\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 100_000,
        b"1;" + b"x" * 200 + b"\r\na\r\n" + (b"1;" + b"x" * 200 + b"\r\na\r\n") * 1000,
    ],
)
def test_a_broken_chunked_body_is_refused(door, body):
    here = door()
    client = here.connect()
    (answer,) = client.send(here.request(Transfer_Encoding="chunked") + body)
    assert answer.status in (400, 413)
    assert answer.headers["connection"] == "close"
    assert not here.engine.calls


def test_empty_lines_before_a_request_are_skipped(door):
    here = door()
    raw = here.request(method="GET", path=LIVE)
    for count in (1, 2, 3, 7):
        client = here.connect()
        found = [*client.send(b"\r\n" * count), *client.send(raw + b"\r\n" * count + raw)]
        assert [answer.status for answer in found] == [200, 200]


@pytest.mark.parametrize(
    "path",
    [
        "http://here/v2/health/live",
        "/v2/health/%6Cive",
        "/v2/health/live?x=%00",
        "http://h:1" + LIVE,
    ],
)
def test_forms_of_the_target(door, path):
    here = door()
    assert here.connect().send(here.request(method="GET", path=path))[0].status == 200


def test_a_head_that_never_ends_is_refused_early(door):
    here = door(header_bytes=1000)
    client = here.connect()
    (answer,) = client.send(b"GET / HTTP/1.1\r\nA: " + b"a" * 2000)
    assert answer.status == 431
    assert client.transport.half_closed
    assert client.connection._rest == b""


@pytest.mark.parametrize("lines", [b"A: " + b"a" * 2000 + b"\r\n", b"A: b\r\n" * 20])
def test_a_head_beyond_the_limits_is_refused_in_its_turn(door, lines):
    here = door(header_bytes=1000, headers=10)
    here.engine.holds = True
    client = here.connect()
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
    assert not client.send(here.request(here.infer()) + raw)
    here.engine.answer(here.engine.calls[0])
    here.turn()
    assert [answer.status for answer in client.answers()] == [200, 431]


def test_errors_of_known_routes_keep_the_connection(door):
    here = door()
    client = here.connect()
    found = client.send(
        here.request(here.infer(), path="/v2/models/missing/infer")
        + here.request(b"{}")
        + here.request(b"nonsense")
        + here.request(method="GET", path="/nothing/here")
        + here.request(method="DELETE", path=LIVE)
        + here.request(here.infer())
    )
    assert [answer.status for answer in found] == [404, 400, 400, 404, 405, 200]
    assert found[4].headers["allow"] == "GET, HEAD"
    assert not client.transport.ended


def test_a_bug_is_answered_without_its_inside(door, caplog):
    here = door()
    client = here.connect()
    (answer,) = client.send(here.request(method="GET", path="/v2/models/m/ready"))
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    assert "secret" in caplog.text
    assert not client.transport.ended


def test_a_bug_in_a_connection_ends_that_connection_only(door, caplog, monkeypatch):
    here = door()
    client, other = here.connect(), here.connect()
    monkeypatch.setattr(here.app.heads, "read", lambda raw: 1 / 0)
    client.feed(here.request(here.infer()))
    monkeypatch.undo()
    assert client.transport.ended == "aborted"
    assert other.send(here.request(here.infer()))[0].status == 200


def test_the_key_is_needed_except_for_health(door):
    here = door(api_key="s3cret")
    client = here.connect()
    found = client.send(
        here.request(here.infer())
        + here.request(here.infer(), Authorization="Bearer wrong")
        + here.request(here.infer(), Authorization="bearer s3cret")
        + here.request(here.infer(), X_Api_Key="s3cret")
        + here.request(method="GET", path=LIVE)
        + here.request(method="GET", path="/v2")
    )
    assert [answer.status for answer in found] == [401, 401, 200, 200, 200, 401]
    assert found[0].headers["www-authenticate"] == "Bearer"


def test_request_ids_come_back(door):
    here = door()
    (answer,) = here.connect().send(here.request(here.infer(), X_Request_Id="7-é"))
    assert answer.headers["x-request-id"] == "7-é"


def test_compressed_both_ways(door):
    here = door()
    body = gzip.compress(here.infer(*range(3000)))
    raw = here.request(body, Content_Encoding="gzip", Accept_Encoding="br, gzip;q=0.5")
    client = here.connect()
    client.feed(raw)
    while here.app._tasks:
        here.loop.run_until_complete(asyncio.wait(here.app._tasks))
    here.turn()
    (answer,) = client.answers()
    assert answer.headers["content-encoding"] == "gzip"
    assert b"2999.0" in gzip.decompress(answer.body)


@pytest.mark.parametrize("size", [50 << 20, 1000])
def test_a_bomb_is_refused(door, size):
    here = door(body_bytes=500)
    bomb = gzip.compress(b"0" * size)[: 400 if size == 1000 else None]
    client = here.connect()
    (answer,) = client.send(here.request(bomb, Content_Encoding="gzip"))
    assert answer.status == 413
    assert not here.engine.calls


def test_an_unknown_coding_is_refused(door):
    here = door()
    (answer,) = here.connect().send(here.request(here.infer(), Content_Encoding="br"))
    assert answer.status == 415


def test_a_client_that_leaves_cancels_its_calls(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()) * 3)
    client.leave()
    assert here.engine.cancelled == here.engine.calls
    here.turn()
    assert not client.transport.sent
    assert client.connection not in here.app.connections


def test_a_client_that_leaves_in_a_body_frees_it(door):
    here = door()
    client = here.connect()
    client.feed(here.request(here.infer(*range(9000)))[:30_000])
    client.leave()
    assert client.connection._body is None
    assert not here.engine.calls


def test_a_client_that_ends_its_side_gets_what_is_ready_and_no_more(door):
    here = door(pipelined=4)
    client = here.connect()
    client.feed(here.request(method="GET", path=LIVE) + here.request(here.infer()) * 10)
    client.end()
    assert [answer.json for answer in client.answers()] == [{"live": True}]
    assert here.engine.cancelled == here.engine.calls
    client.connection.connection_lost(None)
    assert client.connection not in here.app.connections


@pytest.mark.parametrize("sent", ["a request", "a head", "a chunk", "a continue", "a stream"])
def test_the_end_of_the_input_ends_what_is_due(door, sent):
    here = door()
    here.engine.holds = True
    body = here.infer(*range(9000))
    raw = {
        "a request": here.request(here.infer()),
        "a head": here.request(body)[:30_000],
        "a chunk": here.request(b"5\r\nabc", Transfer_Encoding="chunked"),
        "a continue": here.request(Content_Length="9", Expect="100-continue"),
        "a stream": here.request(b"[1]", path="/predict/m"),
    }[sent]
    client = here.connect()
    client.send(raw)
    if sent == "a stream":
        here.engine.push(here.engine.calls[0], Tensor.of([1.0]), False)
    client.end()
    assert here.engine.cancelled == here.engine.calls
    assert client.connection._body is client.connection._chunked is None


def test_who_ends_its_side_and_does_not_read_is_ended(door):
    here = door(body_timeout_s=30)
    client = here.connect()
    client.transport.window = 0
    client.feed(here.request(method="GET", path=LIVE))
    client.end()
    assert client.transport.ended == "closed"
    client.transport.ended = ""
    here.pass_time(1)
    here.pass_time(31)
    assert client.transport.ended == "aborted"


def test_slow_heads_are_ended_even_if_they_drip(door):
    here = door(header_timeout_s=10)
    client = here.connect()
    for byte in b"GET / HTTP/1.1\r\n":
        client.feed(bytes([byte]))
        here.pass_time(1)
    assert client.transport.ended == "aborted"


def test_a_busy_client_is_not_taken_for_a_slow_one(door):
    here = door(header_timeout_s=10)
    client = here.connect()
    raw = here.request(method="GET", path=LIVE)
    client.send(raw[:5])
    for _ in range(30):
        client.send(raw[5:] + raw[:5])
        here.pass_time(1)
    assert not client.transport.ended


def test_silent_bodies_are_ended_and_slow_ones_are_not(door):
    here = door(body_timeout_s=30)
    client = here.connect()
    raw = here.request(here.infer(*range(100)))
    client.feed(raw[:200])
    for position in range(200, 210):
        here.pass_time(20)
        client.feed(raw[position : position + 1])
    assert not client.transport.ended
    here.pass_time(31)
    assert client.transport.ended == "aborted"


def test_idle_connections_are_closed_and_waiting_ones_are_not(door):
    here = door(idle_timeout_s=60)
    here.engine.holds = True
    idle, waiting = here.connect(), here.connect()
    waiting.send(here.request(here.infer()))
    here.pass_time(59)
    assert not idle.transport.ended
    here.pass_time(2)
    assert idle.transport.ended == "closed"
    assert not waiting.transport.ended


def test_a_client_that_stops_reading_is_ended_and_a_slow_one_is_not(door):
    here = door(body_timeout_s=30)
    client = here.connect()
    client.transport.window = 0
    client.send(here.request(method="GET", path=LIVE))
    for _ in range(5):
        here.pass_time(20)
        client.transport.read_on(1)
    assert not client.transport.ended
    here.pass_time(1)
    here.pass_time(31)
    assert client.transport.ended == "aborted"


def test_sending_on_is_no_excuse_for_not_reading(door):
    here = door(body_timeout_s=30)
    client = here.connect()
    client.transport.window = 0
    client.send(here.request(method="GET", path=LIVE))
    here.pass_time(1)
    for _ in range(4):
        client.feed(b"G")
        here.pass_time(8)
    assert client.transport.ended == "aborted"


def test_a_refused_upload_is_not_listened_to_for_ever(door):
    here = door(body_bytes=10)
    client = here.connect()
    client.send(here.request(here.infer(*range(90_000))))
    assert client.transport.half_closed
    for _ in range(30):
        here.pass_time(0.5)
        client.feed(b"x" * 1000)
    assert client.transport.ended == "aborted"


def test_under_tls_a_refused_upload_is_closed(door):
    here = door(body_bytes=10)
    client = here.connect()
    client.transport.can_half_close = False
    client.send(here.request(here.infer(*range(90_000))))
    assert client.transport.ended == "closed"


def test_draining_ends_idle_connections_and_lets_others_finish(door):
    here = door()
    here.engine.holds = True
    idle, waiting, sending = here.connect(), here.connect(), here.connect()
    waiting.send(here.request(here.infer()))
    raw = here.request(here.infer())
    sending.feed(raw[:-5])
    here.app.drain()
    assert idle.transport.ended == "closed"
    here.engine.answer(here.engine.calls[0])
    here.turn()
    assert waiting.answers()[0].headers["connection"] == "close"
    assert waiting.transport.ended == "closed"
    sending.feed(raw[-5:])
    here.engine.answer(here.engine.calls[1])
    here.turn()
    assert sending.answers()[0].headers["connection"] == "close"


def test_too_many_connections_are_turned_away(door):
    here = door(connections=2)
    clients = [here.connect() for _ in range(3)]
    assert [client.transport.ended for client in clients] == ["", "", "aborted"]


def test_thousands_of_small_requests_leave_nothing_behind(door):
    here = door()
    client = here.connect()
    for index in range(3000):
        client.feed(here.request(here.infer(), X_Request_Id=str(index)))
        if not index % 50:
            here.turn()
    here.turn(50)
    assert len(client.answers()) == 3000
    assert not client.connection._exchanges
    assert not client.connection._out
    assert len(here.app.heads._cache) <= 1024


SCENARIO = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SCENARIO
@given(cuts=st.lists(st.integers(0, 1200), max_size=30))
def test_how_the_bytes_arrive_makes_no_difference(door, cuts):
    here = door()
    stream = b"".join(
        [
            here.request(here.infer(1, 2, 3, 4)),
            b"\r\n",
            here.request(method="GET", path=LIVE),
            here.request(Transfer_Encoding="chunked") + chunked(here.infer(), b" " * 30),
            here.request(b"no json"),
            here.request(method="HEAD", path="/nothing")[:-2] + b"X: y\r\n\r\n",
            here.request(here.infer(5, 6, 7, 8), Connection="close"),
        ]
    ).replace(b"HEAD", b"GET")
    whole = here.connect().send(stream)
    client = here.connect()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in pairwise(edges):
        client.send(stream[start:end])
    assert client.answers() == whole
    assert [answer.status for answer in whole] == [200, 200, 200, 400, 404, 200]


TOKENS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /v2/models/m/infer HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n",
        b"Content-Length: ", b"5", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"5\r\n",
        b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"\n", b"\x00", b":", b" ",
        b"Content-Encoding: gzip\r\n", b"{}",
    ]
)  # fmt: skip


@SCENARIO
@given(
    pieces=st.lists(st.one_of(TOKENS, st.binary(max_size=40)), max_size=25),
    cuts=st.lists(st.integers(0, 400), max_size=5),
)
@example(pieces=[b"PRI * HTTP/2.0\r\n\r\n", b"SM\r\n\r\n", b"{}"], cuts=[])
def test_whatever_arrives_is_answered_or_closed(door, pieces, cuts):
    here = door(header_bytes=300, body_bytes=300)
    client = here.connect()
    stream = b"".join(pieces)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in pairwise(edges):
        client.feed(stream[start:end])
        here.turn(2)
    connection = client.connection
    assert len(connection._rest) <= 1000
    for answer in client.transport.sent.split(b"HTTP/1.1 ")[1:]:
        assert answer[:3] != b"500"
    here.pass_time(31)
    here.pass_time(121)
    assert client.transport.ended or client.transport.half_closed
