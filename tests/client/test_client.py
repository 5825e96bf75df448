"""The clients against a real server, and their patience against a scripted one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from tests.client.models import TOY, WORDS

import salver
from salver.errors import (
    ConfigError,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    LoadFailed,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
    Undeliverable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def url(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    (folder / "toy.py").write_text(TOY)
    (folder / "words.py").write_text(WORDS)
    server = serve(
        folder / "toy.py", folder / "words.py", "--mode", "explicit", "--api-key", "secret"
    )
    with salver.Client(server.url, "secret") as client:
        client.load("toy")
        client.load("words")
    return str(server.url)


@pytest.fixture
def client(url: str) -> Iterator[salver.Client]:
    with salver.Client(url, "secret") as client:
        yield client


def test_predict_takes_lists_and_arrays_of_any_number_type(client: salver.Client) -> None:
    for value in ([[1, 2, 3], [4, 5, 6]], np.array([[1, 2, 3], [4, 5, 6]], np.float64)):
        answer = client.predict("toy", value)
        assert answer.dtype == np.float32
        assert answer.tolist() == [6.0, 15.0]


def test_an_answer_can_be_changed_in_place(client: salver.Client) -> None:
    answer = client.predict("toy", np.ones((2, 3)))
    answer -= 1
    assert answer.tolist() == [2.0, 2.0]


def test_one_row_without_a_batch_dimension_gives_one_answer(client: salver.Client) -> None:
    assert client.predict("toy", [1, 2, 3]) == 6.0


def test_text_goes_in_and_comes_out_as_text(client: salver.Client) -> None:
    answer = client.predict("words", {"text": ["ab", "ö"], "times": [2, 3]})
    assert answer.tolist() == ["abab", "ööö"]


def test_a_frame_goes_column_by_column(client: salver.Client) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"times": [2, 3], "text": ["ab", "ö"]})
    assert client.predict("words", frame).tolist() == ["abab", "ööö"]
    assert client.predict("toy", frame[["times"] * 3].set_axis(list("abc"), axis=1)).tolist() == [
        6,
        9,
    ]


def test_json_goes_in_and_comes_out_as_values(client: salver.Client) -> None:
    for pairs in ({"a": 1}, {"pairs": {"a": 1}}):
        assert client.predict("toy", pairs, method="swap") == {"1": "a"}
    assert client.predict("toy", {}, method="swap") == {}
    both = {"pairs": {"a": None}, "twice": True}
    assert client.predict("toy", both, method="swap") == {"a": None}
    assert client.infer("toy", {"pairs": b'{"a": 1}'}, method="swap")["output"] == b'{"1":"a"}'
    with pytest.raises(InvalidInput, match=r"input 'pairs': .*not JSON serializable"):
        client.predict("toy", {"a": object()}, method="swap")
    with pytest.raises(InvalidInput, match="input 'pairs': Expected `object`, got `str`"):
        client.predict("toy", "a", method="swap")


def test_infer_gives_outputs_by_name_and_tells_the_version(client: salver.Client) -> None:
    result = client.infer("words", {"text": ["a"], "times": [3]}, ["output"], version="1")
    assert list(result) == ["output"]
    assert result["output"].tolist() == [b"aaa"]
    assert result.model_version == "1"


def test_methods_and_streams(client: salver.Client) -> None:
    assert client.predict("toy", "hi", method="shout") == "HI"
    result = client.infer("toy", {"text": "hi"}, ["output"], version="1", method="shout")
    assert result["output"].tolist() == b"HI"
    assert result.model_version == "1"
    assert client.predict("toy", [1, 2, 3], method="predict") == 6.0
    assert list(client.stream("toy", 3, method="count")) == [0, 1, 2]


def test_a_method_that_does_not_exist(client: salver.Client) -> None:
    with pytest.raises(NotFound, match=r"toy has no method 'shoot'\. Did you mean 'shout'"):
        client.predict("toy", "hi", method="shoot")


def test_answers_as_the_plain_door_gives_them(client: salver.Client) -> None:
    assert list(client.answers("toy", "hi", method="shout")) == [
        {"prediction": "HI", "model_version": "1"}
    ]


def test_a_stream_ends_with_the_models_error(client: salver.Client) -> None:
    items = client.stream("toy", {"upto": 9}, method="count")
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInput, match="no further than five"):
        next(items)


def test_a_stream_may_be_left_early(client: salver.Client) -> None:
    items = client.stream("toy", 4, method="count")
    assert next(items) == 0
    items.close()
    assert client.predict("toy", [1, 1, 1]) == 3.0


def test_a_streaming_method_is_not_taken_for_one_answer(client: salver.Client) -> None:
    with pytest.raises(Unsupported, match="this method streams"):
        client.predict("toy", 3, method="count")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2]], r"input 'x': expected shape \[-1, 3\], got \[1, 2\]"),
        (["a"], r"input 'x': expected FP32, got text of shape \[1, 1\]"),
        ([[1, 2], [3]], "input 'x': the rows differ in length"),
        ({"y": [[1, 2, 3]]}, "unexpected input 'y'. Expected: x"),
    ],
)
def test_wrong_inputs_are_explained(client: salver.Client, value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        client.predict("toy", value)


def test_several_inputs_need_names(client: salver.Client) -> None:
    with pytest.raises(InvalidInput, match=r"'text': ..., 'times': ..."):
        client.predict("words", ["a"])


def test_an_integer_input_takes_no_fractions(client: salver.Client) -> None:
    with pytest.raises(InvalidInput, match="expected INT64, got float64"):
        client.predict("words", {"text": ["a"], "times": [1.5]})


def test_errors_carry_the_servers_message(client: salver.Client, url: str) -> None:
    with pytest.raises(NotFound, match="'toi' is not served here"):
        client.predict("toi", [1])
    with (
        salver.Client(url) as stranger,
        pytest.raises(Unauthenticated, match="needs its API key"),
    ):
        stranger.models()


def test_state_of_the_server(client: salver.Client) -> None:
    assert client.is_ready()
    assert client.is_ready("toy")
    assert not client.is_ready("toi")
    assert {(m.name, m.state) for m in client.models()} == {("toy", "READY"), ("words", "READY")}
    assert client.metadata("toy")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert [entry["name"] for entry in client.statistics("toy")] == ["toy"]
    assert {entry["name"] for entry in client.statistics()} == {"toy", "words"}
    assert {model["name"] for model in client.state()["models"]} == {"toy", "words"}


def test_unload_and_load(client: salver.Client) -> None:
    client.unload("words")
    assert not client.is_ready("words")
    client.load("words")
    assert client.is_ready("words")


def test_threads_share_a_client(client: salver.Client) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: client.predict("toy", [n, n, n]), range(20)))
    assert answers == [3.0 * n for n in range(20)]


def test_the_asynchronous_client_does_the_same(url: str) -> None:
    async def run() -> None:
        async with salver.AsyncClient(url, "secret") as client:
            answers = await asyncio.gather(*(client.predict("toy", [n, 0, 0]) for n in range(4)))
            assert answers == [0.0, 1.0, 2.0, 3.0]
            result = await client.infer("words", {"text": ["a"], "times": [2]})
            assert result["output"].tolist() == [b"aa"]
            assert await client.predict("toy", "hi", method="shout") == "HI"
            assert [n async for n in client.stream("toy", 3, method="count")] == [0, 1, 2]
            answers = [answer async for answer in client.answers("toy", [1, 2, 3])]
            assert answers == [{"prediction": 6.0, "model_version": "1"}]
            assert await client.is_ready("toy")
            assert len(await client.models()) == 2
            assert len(await client.statistics()) == 2
            assert (await client.metadata("toy"))["name"] == "toy"
            assert len((await client.state())["models"]) == 2
            await client.unload("words")
            await client.load("words")
            with pytest.raises(NotFound):
                await client.predict("toi", [1])

    asyncio.run(run())


def test_loading_needs_explicit_mode() -> None:
    replies = Script(httpx.Response(409, json={"error": "start with --mode explicit"}))
    with pytest.raises(Conflict, match="--mode explicit"):
        replies.client().load("m")


def test_a_model_that_cannot_be_loaded() -> None:
    for status in (400, 501):
        script = Script(httpx.Response(status, json={"error": "m.onnx is cut off"}))
        with pytest.raises(LoadFailed, match="cut off"):
            script.client().load("m")


class Script:
    """A server that answers from a list; errors in it are raised. Pauses pass at once."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.now = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += int(seconds * 1e9)

    def client(self, **options: Any) -> salver.Client:
        return salver.Client(
            "http://server",
            transport=httpx.MockTransport(self),
            sleep=self.pause,
            clock=lambda: self.now,
            uniform=lambda: 1.0,
            **options,
        )


METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1], "data": [7]}


def metadata() -> httpx.Response:
    return httpx.Response(200, json=METADATA)


def answer() -> httpx.Response:
    return httpx.Response(200, json={"model_name": "m", "outputs": [OUTPUT]})


def busy(**headers: str) -> httpx.Response:
    return httpx.Response(429, json={"error": "the queue is full"}, headers=headers)


def test_a_busy_server_is_asked_again_after_growing_pauses() -> None:
    script = Script(metadata(), busy(), busy(), answer())
    assert script.client().predict("m", [1.0]) == [7.0]
    assert script.pauses == [0.05, 0.1]


def test_the_servers_own_time_is_waited_for() -> None:
    script = Script(metadata(), busy(**{"Retry-After": "2"}), answer())
    script.client().predict("m", [1.0])
    assert script.pauses == [2.0]


def test_in_the_end_the_servers_error_is_raised() -> None:
    script = Script(metadata(), busy(), busy())
    with pytest.raises(Overloaded, match="the queue is full"):
        script.client(retries=1).predict("m", [1.0])
    assert len(script.requests) == 3


def test_no_pause_goes_beyond_the_deadline() -> None:
    script = Script(metadata(), busy(**{"Retry-After": "9"}))
    with pytest.raises(Overloaded):
        script.client(timeout_s=5).predict("m", [1.0])
    assert script.pauses == []


def test_a_call_without_any_time_is_not_sent(url: str) -> None:
    with salver.Client(url, "secret") as client:
        with pytest.raises(DeadlineExceeded, match="before it was sent"):
            client.predict("toy", [[1, 2, 3]], timeout_s=0)
        assert client.predict("toy", [[1, 2, 3]], timeout_s=30) == [6.0]


def test_a_version_may_be_a_number(client: salver.Client) -> None:
    assert client.predict("toy", [[1, 2, 3]], version=1) == [6.0]
    assert client.infer("toy", {"x": [[1, 2, 3]]}, version=1).model_version == "1"
    assert client.metadata("toy", 1)["name"] == "toy"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_closed_client_says_so(url: str, scheme: str) -> None:
    client = salver.Client(url.replace("http", scheme, 1), "secret")
    client.close()
    with pytest.raises(Conflict, match="this client is closed"):
        client.predict("toy", [[1, 2, 3]])
    with pytest.raises(Conflict, match="this client is closed"):
        next(client.stream("toy", 3, method="count"))
    assert not client.is_ready()


def test_what_is_left_of_the_time_is_passed_on() -> None:
    script = Script(metadata(), busy(**{"Retry-After": "2"}), answer())
    script.client(timeout_s=60).infer("m", {"x": [1.0]}, timeout_s=5)
    assert [r.headers["x-request-timeout-ms"] for r in script.requests] == ["5000", "5000", "3000"]


def test_a_row_for_a_model_of_one_row() -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    y = {"name": "y", "datatype": "FP32", "shape": [1]}
    told = httpx.Response(200, json={"name": "m", "inputs": [x], "outputs": [y]})
    script = Script(told, answer(), answer())
    client = script.client()
    assert client.predict("m", [1.0, 2.0]) == 7.0
    assert client.predict("m", [[1.0, 2.0]]) == [7.0]


def test_without_a_bound_no_deadline_is_sent() -> None:
    script = Script(metadata(), answer())
    script.client(timeout_s=None).predict("m", [1.0])
    assert all("x-request-timeout-ms" not in request.headers for request in script.requests)


def test_a_connection_that_never_was_is_tried_again() -> None:
    script = Script(metadata(), httpx.ConnectError("refused"), answer())
    assert script.client().predict("m", [1.0]) == [7.0]


def test_a_connection_that_broke_is_not_tried_again_with_a_model() -> None:
    script = Script(metadata(), httpx.ReadError(""))
    with pytest.raises(Undeliverable, match="may have been run"):
        script.client().predict("m", [1.0])


def test_a_connection_that_broke_is_tried_again_where_nothing_was_run() -> None:
    script = Script(httpx.RemoteProtocolError(""), metadata())
    assert script.client().metadata("m") == METADATA


@pytest.mark.parametrize("status", [400, 404, 500, 504])
def test_other_errors_are_raised_at_once(status: int) -> None:
    script = Script(metadata(), httpx.Response(status, json={"error": "no"}))
    with pytest.raises(salver.errors.SalverError, match="no"):
        script.client().predict("m", [1.0])
    assert script.pauses == []


def test_no_answer_in_time() -> None:
    script = Script(metadata(), httpx.ReadTimeout(""))
    with pytest.raises(DeadlineExceeded, match="no answer from http://server in time"):
        script.client().predict("m", [1.0])


def test_nobody_there() -> None:
    script = Script(*[httpx.ConnectError("connection refused")] * 3)
    with pytest.raises(Unavailable, match=r"cannot connect to http://server \(connection refused"):
        script.client(retries=1).models()
    assert not script.client().is_ready()


def test_an_error_from_something_between() -> None:
    script = Script(metadata(), httpx.Response(502, text="Bad Gateway"))
    with pytest.raises(Undeliverable, match="answered 502: Bad Gateway"):
        script.client().predict("m", [1.0])
    script = Script(httpx.Response(505, text="?"))
    with pytest.raises(Internal, match=r"answered 505: \?"):
        script.client().models()


def test_metadata_are_asked_for_once_and_again_after_an_error() -> None:
    refusal = httpx.Response(400, json={"error": "expected INT64"})
    script = Script(metadata(), answer(), refusal, metadata(), answer())
    client = script.client()
    client.predict("m", [1.0])
    with pytest.raises(InvalidInput):
        client.predict("m", [1.0])
    client.predict("m", [1.0])
    assert [request.method for request in script.requests] == ["GET", *["POST"] * 2, "GET", "POST"]


def test_inputs_travel_in_binary() -> None:
    script = Script(metadata(), answer())
    script.client().predict("m", [1.0, 2.0])
    request = script.requests[1]
    length = int(request.headers["inference-header-content-length"])
    head, tail = json.loads(request.content[:length]), request.content[length:]
    assert head["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert head["parameters"] == {"binary_data_output": True}
    assert np.frombuffer(tail, np.float32).tolist() == [1.0, 2.0]


def test_bfloat16_is_float32_to_the_caller() -> None:
    described = {
        "name": "m",
        "inputs": [{"name": "x", "datatype": "BF16", "shape": [-1]}],
        "outputs": [{"name": "y", "datatype": "BF16", "shape": [-1]}],
    }
    head = {
        "outputs": [
            {
                "name": "y",
                "datatype": "BF16",
                "shape": [1],
                "parameters": {"binary_data_size": 2},
            }
        ]
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    reply = httpx.Response(200, content=text + b"\xc0\x3f", headers=headers)
    script = Script(httpx.Response(200, json=described), reply)
    found = script.client().predict("m", [1.5])
    assert found.dtype == np.float32
    assert found.tolist() == [1.5]
    assert script.requests[1].content.endswith(b"\xc0\x3f")


def test_an_asynchronous_client_waits_too() -> None:
    script = Script(metadata(), busy(), httpx.ConnectError(""), answer())

    async def pause(seconds: float) -> None:
        script.pause(seconds)

    async def run() -> Any:
        transport = httpx.MockTransport(script)
        async with salver.AsyncClient(
            "server", transport=transport, sleep=pause, uniform=lambda: 0.0
        ) as client:
            return await client.predict("m", [1.0])

    assert asyncio.run(run()) == [7.0]
    assert script.pauses == [0.025, 0.05]


def test_a_scheme_that_is_not_spoken() -> None:
    with pytest.raises(ConfigError, match="and grpcs, not ftp"):
        salver.Client("ftp://server")


@pytest.mark.parametrize("url", ["http://server", "grpc://server"])
def test_a_key_that_cannot_be_sent(url: str) -> None:
    for key in ("schl\xfcssel", "two words", "key\n"):
        with pytest.raises(ConfigError, match="only visible ASCII characters"):
            salver.Client(url, key)


def test_without_httpx_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\nimport salver\n"
        "try: salver.Client()\nexcept salver.errors.MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the client needs `pip install 'salver[client]'`\n"
