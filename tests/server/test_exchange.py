from __future__ import annotations

import asyncio
import gzip
import struct
from typing import Any

import numpy as np
import orjson
import pytest

from salver.errors import DeadlineExceeded, Overloaded
from salver.types import BYTES, Tensor, Tensors

STREAM = {"path": "/predict/m/words"}


def lines(answer: Any) -> list[str]:
    return answer.body.decode().splitlines()


def test_a_stream_leaves_item_by_item(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    here.engine.push(call, Tensor.of([1.0]), False)
    here.turn()
    assert client.transport.sent.count(b"prediction") == 1
    here.engine.push(call, Tensor.of([2.0]), False)
    here.engine.push(call, Tensor.of([3.0]), True)
    here.turn()
    (answer,) = client.answers()
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert ["1.0" in line for line in lines(answer)] == [True, False, False]
    assert not client.transport.ended


def test_an_error_ends_a_stream_as_its_last_line(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    here.engine.push(call, Tensor.of([1.0]), False)
    here.engine.fail(call, DeadlineExceeded("too late"))
    here.turn()
    (answer,) = client.answers()
    assert lines(answer)[-1] == '{"error":"too late","status":504}'


def test_http_1_0_gets_a_stream_without_chunks(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    body = b'{"input": 1}'
    client.send(b"POST /predict/m/w HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    (call,) = here.engine.calls
    here.engine.push(call, Tensor.of([1.0]), False)
    here.engine.push(call, Tensor.of([2.0]), True)
    here.turn()
    head, _, rest = client.transport.sent.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert rest.count(b"\n") == 2
    assert client.transport.ended == "closed"


def test_a_stream_waits_for_a_reader_and_ends_if_it_never_comes(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.transport.window = 0
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    item = Tensor.of(np.ones(200_000))
    for _ in range(40):
        here.engine.push(call, item, False)
        here.turn(1)
    assert here.engine.cancelled == [call]
    assert len(client.transport.waiting) < 2 << 20
    client.transport.read_on(1 << 60)
    here.turn()
    (answer,) = client.answers()
    assert "too slow" in lines(answer)[-1]
    assert here.engine.flow[0] == "pause"


def test_a_model_goes_on_when_its_reader_does(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.transport.window = 0
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    item = Tensor.of(np.ones(200_000))
    while "pause" not in here.engine.flow:
        here.engine.push(call, item, False)
        here.turn(1)
    assert "resume" not in here.engine.flow
    client.transport.read_on(1 << 60)
    here.turn()
    assert here.engine.flow[-1] == "resume"
    here.engine.push(call, item, True)
    here.turn()
    (answer,) = client.answers()
    assert "error" not in lines(answer)[-1]


def test_a_slow_reader_gets_everything_that_fits(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.transport.window = 0
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    for index in range(20):
        here.engine.push(call, Tensor.of(np.full(10_000, float(index))), index == 19)
        here.turn(1)
    while client.transport.waiting:
        client.transport.read_on(50_000)
        here.turn()
    (answer,) = client.answers()
    assert len(lines(answer)) == 20
    assert not here.engine.cancelled


def test_streams_are_for_the_plain_door(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()))
    (call,) = here.engine.calls
    here.engine.push(call, Tensor.of([1.0]), False)
    here.turn()
    (answer,) = client.answers()
    assert answer.status == 501
    assert "/predict/MODEL/METHOD" in answer.json["error"]
    assert here.engine.cancelled == [call]


def test_a_stream_without_items_is_an_empty_body(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(b'{"input": 1}', **STREAM))
    (call,) = here.engine.calls
    here.engine.push_nothing(call)
    here.turn()
    (answer,) = client.answers()
    assert answer.status == 200
    assert answer.body == b""


@pytest.mark.parametrize(
    ("body", "head", "expected"),
    [
        (0, None, 60_000),
        (5, None, 5),
        (0, "7", 7),
        (5, "7", 5),
        (9, "7", 7),
        (90_000, None, 90_000),
    ],
)
def test_the_earliest_deadline_counts(door, body, head, expected):
    here = door()
    here.engine.holds = True
    raw = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]%b}' % (
        b', "parameters": {"timeout": %d}' % (body * 1000) if body else b""
    )
    headers = {"X_Request_Timeout_Ms": head} if head else {}
    here.connect().send(here.request(raw, **headers))
    (call,) = here.engine.calls
    assert call.context.deadline == here.time + expected * 1_000_000


def test_no_limit_means_no_deadline(door):
    here = door(request_timeout_s=0)
    here.engine.holds = True
    here.connect().send(here.request(here.infer()))
    assert here.engine.calls[0].context.deadline == 0


def test_an_overload_says_when_to_try_again(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()))
    here.engine.fail(here.engine.calls[0], Overloaded("full", retry_after_ms=1200))
    here.turn()
    (answer,) = client.answers()
    assert answer.status == 429
    assert answer.headers["retry-after"] == "2"


def test_commands_run_beside_the_loop(door):
    here = door()
    client = here.connect()
    path = "/v2/repository/models/m/load"
    found = client.send(
        here.request(path=path) + here.request(b'{"parameters": {"a": "b"}}', path=path)
    )
    assert [answer.status for answer in found] == [200, 400]


def test_a_client_that_left_does_not_start_what_was_inflated(door):
    here = door()
    client = here.connect()
    body = gzip.compress(np.random.default_rng(0).bytes(9000))
    client.feed(here.request(body, Content_Encoding="gzip"))
    client.leave()
    while here.app._tasks:
        here.loop.run_until_complete(asyncio.wait(here.app._tasks))
    assert not here.engine.calls
    assert not client.transport.sent


@pytest.mark.parametrize("is_compressed", [False, True])
def test_much_text_is_decoded_beside_the_loop(door, is_compressed):
    here = door()
    client = here.connect()
    body, headers = here.infer(1, 2, 3, 4) + b" " * 300_000, {}
    if is_compressed:
        body, headers = gzip.compress(body), {"Content_Encoding": "gzip"}
        assert len(body) < 1000
    client.feed(here.request(body, **headers))
    assert not here.engine.calls
    while here.app._tasks:
        here.loop.run_until_complete(asyncio.wait(here.app._tasks))
    here.turn()
    (answer,) = client.answers()
    assert answer.json["outputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize("is_one", [False, True])
def test_many_rows_are_bound_beside_the_loop(door, is_one):
    here = door()
    client = here.connect()
    rows = [[1.0, 2.0, 3.0, 4.0]] * 20_000
    body = orjson.dumps({"input": rows[0]} if is_one else {"inputs": rows}) + b" " * 300_000
    client.feed(here.request(body, path="/predict/m"))
    while here.app._tasks:
        here.loop.run_until_complete(asyncio.wait(here.app._tasks))
    here.turn()
    (call,) = here.engine.calls
    assert isinstance(call.request.payload, Tensors)
    assert call.request.payload["x"].shape == (1 if is_one else 20_000, 4)
    (answer,) = client.answers()
    assert answer.json["prediction" if is_one else "predictions"] == (rows[0] if is_one else rows)


def test_many_rows_that_do_not_fit_are_refused(door):
    here = door()
    client = here.connect()
    body = orjson.dumps({"inputs": [["a"] * 4] * 40_000})
    for path, status in (("/predict/m", 400), ("/predict/missing", 404)):
        client.feed(here.request(body, path=path))
        while here.app._tasks:
            here.loop.run_until_complete(asyncio.wait(here.app._tasks))
        here.turn()
        assert client.answers()[-1].status == status


def test_many_bytes_are_decoded_at_once(door):
    here = door()
    body = here.infer(1, 2, 3, 4)
    raw = here.request(body + b" " * 300_000, Inference_Header_Content_Length=str(len(body)))
    (answer,) = here.connect().send(raw)
    assert answer.status == 400
    assert not here.app._tasks


def test_many_texts_are_decoded_beside_the_loop(door):
    here = door()
    client = here.connect()
    texts = b"".join(struct.pack("<I", 4) + b"text" for _ in range(50_000))
    entry = {"name": "x", "shape": [50_000], "datatype": "BYTES"}
    entry["parameters"] = {"binary_data_size": len(texts)}
    head = orjson.dumps({"inputs": [entry]})
    client.feed(here.request(head + texts, Inference_Header_Content_Length=str(len(head))))
    assert not here.engine.calls
    while here.app._tasks:
        here.turn(1)
    here.turn()
    (answer,) = client.answers()
    assert answer.json["outputs"][0]["data"] == ["text"] * 50_000


def test_an_answer_that_cannot_be_written_is_an_error(door, caplog):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()))
    broken: Any = Tensor.of([1.0])
    broken.dtype = None
    here.engine.push(here.engine.calls[0], broken, True)
    here.turn()
    (answer,) = client.answers()
    assert answer.status == 500
    assert answer.json == {"error": "an internal error; the server's log has the details"}


LONG = Tensor.of(np.zeros((200_000, 1), np.float32))


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/predict/m", "/v1/models/m:predict"])
def test_a_short_answer_comes_between_the_parts_of_a_long_one(door, path):
    here = door()
    here.engine.holds = True
    patient, other = here.connect(), here.connect()
    key = "instances" if path.startswith("/v1") else "inputs"
    body = here.infer() if path.startswith("/v2") else orjson.dumps({key: [1]})
    patient.send(here.request(body, path=path))
    here.engine.push(here.engine.calls[0], LONG, True)
    other.feed(here.request(here.infer(7.5)))
    here.engine.answer(here.engine.calls[1])
    here.turn(3)
    assert other.answers()[0].json["outputs"][0]["data"] == [7.5]
    assert not patient.transport.sent
    while here.app._tasks:
        here.turn(1)
    here.turn()
    (answer,) = patient.answers()
    assert answer.status == 200
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.body.count(b"0.0") == 200_000


def test_nothing_more_is_written_for_a_client_that_left(door):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()))
    here.engine.push(here.engine.calls[0], LONG, True)
    here.turn(1)
    client.leave()
    here.turn(2)
    assert not here.app._tasks
    assert not client.transport.sent


@pytest.mark.parametrize("value", [b"\xff", None])
def test_a_long_answer_that_cannot_be_written_is_an_error(door, value, caplog):
    here = door()
    here.engine.holds = True
    client = here.connect()
    client.send(here.request(here.infer()))
    array = np.full(50_000, b"a", np.object_)
    array[-1] = value
    here.engine.push(here.engine.calls[0], Tensor(BYTES, array.shape, array), True)
    while here.app._tasks:
        here.turn(1)
    here.turn()
    (answer,) = client.answers()
    assert answer.status == 500
    assert ("not UTF-8" in answer.json["error"]) == (value is not None)
