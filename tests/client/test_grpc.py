"""The clients over gRPC against a real server."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.models import TOY, WORDS
from tritonclient.grpc import service_pb2, service_pb2_grpc

import salver
from salver.client.grpc_transport import meaning
from salver.errors import (
    DeadlineExceeded,
    InvalidInput,
    LoadFailed,
    NotFound,
    Unauthenticated,
    Unavailable,
    Undeliverable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SWAP = """
class Swap:
    def predict(self, pairs: dict) -> dict:
        return {str(value): key for key, value in pairs.items()}
"""


@pytest.fixture(scope="module")
def address(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    (folder / "toy.py").write_text(TOY)
    (folder / "words.py").write_text(WORDS)
    (folder / "broken.py").write_text("def predict(x: int) -> int\n")
    (folder / "swap.py").write_text(SWAP)
    files = [folder / f"{name}.py" for name in ("toy", "words", "swap", "broken")]
    server = serve(*files, "--mode", "explicit", "--api-key", "secret")
    with salver.Client(f"grpc://{server.address}", "secret") as client:
        client.load("toy")
        client.load("words")
        client.load("swap")
    return str(server.address)


@pytest.fixture
def client(address: str) -> Iterator[salver.Client]:
    with salver.Client(f"grpc://{address}", "secret") as client:
        yield client


def test_predict(client: salver.Client) -> None:
    answer = client.predict("toy", [[1, 2, 3], [4, 5, 6]])
    assert answer.dtype == np.float32
    assert answer.tolist() == [6.0, 15.0]
    assert client.predict("toy", [1, 2, 3]) == 6.0
    answer = client.predict("words", {"text": ["ab", "ö"], "times": [2, 3]})
    assert answer.tolist() == ["abab", "ööö"]


def test_json_goes_in_and_comes_out_as_values(client: salver.Client) -> None:
    assert client.predict("swap", {"a": 1}) == {"1": "a"}


def test_infer(client: salver.Client) -> None:
    inputs = {"text": ["a"], "times": [3]}
    result = client.infer("words", inputs, ["output"], version="1", parameters={"note": 1.5})
    assert result["output"].tolist() == [b"aaa"]
    assert result.model_version == "1"


def test_methods(client: salver.Client) -> None:
    assert client.predict("toy", "hi", method="shout") == "HI"
    result = client.infer("toy", {"text": "hi"}, ["output"], version="1", method="shout")
    assert result["output"].tolist() == b"HI"
    assert result.model_version == "1"
    with pytest.raises(NotFound, match=r"toy has no method 'shoot'\. Did you mean 'shout'"):
        client.predict("toy", "hi", method="shoot")
    with pytest.raises(Unsupported, match="streams"):
        client.predict("toy", 3, method="count")


def test_streams(client: salver.Client) -> None:
    assert list(client.stream("toy", 3, method="count")) == [0, 1, 2]
    assert list(client.stream("toy", 0, method="count")) == []
    assert list(client.stream("toy", "ab", method="pairs")) == [{"letter": "a"}, {"letter": "b"}]
    assert list(client.stream("toy", [1, 2, 3])) == [6.0]


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


def test_both_wires_tell_the_same(client: salver.Client, address: str) -> None:
    with salver.Client(address, "secret") as http:
        assert client.models() == http.models()
        told = http.metadata("words")
        assert list(told.pop("methods")) == ["words"]
        assert client.metadata("words") == told
        ours, theirs = client.statistics("words"), http.statistics("words")
        assert [entry["name"] for entry in ours] == [entry["name"] for entry in theirs]
        assert ours[0]["inference_count"] == theirs[0]["inference_count"]


def test_readiness(client: salver.Client) -> None:
    assert client.is_ready("toy")
    assert not client.is_ready("toi")
    assert not salver.Client("grpc://127.0.0.1:9").is_ready()


def test_unload_and_load(client: salver.Client) -> None:
    client.unload("words")
    assert not client.is_ready("words")
    client.load("words")
    assert client.is_ready("words")


def test_errors_carry_the_servers_message(client: salver.Client, address: str) -> None:
    with pytest.raises(NotFound, match="'toi' is not served here"):
        client.predict("toi", [1])
    with pytest.raises(InvalidInput, match="expected shape"):
        client.predict("toy", [[1, 2]])
    with pytest.raises(LoadFailed, match="expected ':'"):
        client.load("broken")
    with salver.Client(f"grpc://{address}") as stranger, pytest.raises(Unauthenticated):
        stranger.models()


def test_nobody_there() -> None:
    with (
        salver.Client("grpc://127.0.0.1:9", retries=1, sleep=lambda seconds: None) as client,
        pytest.raises(Unavailable, match=r"cannot connect to 127\.0\.0\.1:9"),
    ):
        client.models()


class Foreign(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server of the protocol that tells nothing of methods."""

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        tensor = {"datatype": "FP32", "shape": [-1]}
        return service_pb2.ModelMetadataResponse(
            name=request.name, inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}]
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        output = {"name": "y", "datatype": "FP32", "shape": request.inputs[0].shape}
        return service_pb2.ModelInferResponse(
            outputs=[output], raw_output_contents=request.raw_input_contents
        )


def test_a_server_without_model_configurations() -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Foreign(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with salver.Client(f"grpc://127.0.0.1:{port}") as client:
            assert client.predict("echo", [1, 2]).tolist() == [1.0, 2.0]
            with pytest.raises(NotFound, match="echo has no method 'top'"):
                client.predict("echo", [1, 2], method="top")
        server.stop(None).wait()


class Failure:
    """What the library raises."""

    def __init__(self, code: grpc.StatusCode, details: str, debug: str = "") -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.debug_error_string = lambda: debug


def test_what_failures_of_the_library_mean() -> None:
    late = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    cut = Failure(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    nobody = Failure(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
    servers = Failure(
        grpc.StatusCode.UNAVAILABLE, "toy is not ready", "Error received from peer {...}"
    )
    assert type(meaning(late, "server")) is DeadlineExceeded
    assert type(meaning(cut, "server")) is Undeliverable
    assert type(meaning(nobody, "server")) is Unavailable
    assert type(meaning(servers, "server")) is Unavailable
    assert meaning(servers, "server").message == "toy is not ready"


def test_what_only_http_offers(client: salver.Client) -> None:
    with pytest.raises(Unsupported, match="connect with http:// to the same port"):
        next(client.answers("toy", 1))
    with pytest.raises(Unsupported, match="state"):
        client.state()


def test_a_parameter_that_cannot_travel(client: salver.Client) -> None:
    with pytest.raises(InvalidInput, match="parameter 'p': expected a string"):
        client.infer("toy", {"x": [[1, 2, 3]]}, parameters={"p": [1]})  # type: ignore[dict-item]


def test_the_asynchronous_client_does_the_same(address: str) -> None:
    async def run() -> None:
        async with salver.AsyncClient(f"grpc://{address}", "secret") as client:
            answers = await asyncio.gather(*(client.predict("toy", [n, 0, 0]) for n in range(4)))
            assert answers == [0.0, 1.0, 2.0, 3.0]
            assert await client.is_ready("toy")
            assert await client.predict("toy", "hi", method="shout") == "HI"
            assert [n async for n in client.stream("toy", 3, method="count")] == [0, 1, 2]
            with pytest.raises(InvalidInput, match="no further than five"):
                [n async for n in client.stream("toy", 9, method="count")]
            with pytest.raises(NotFound):
                await client.predict("toi", [1])

    asyncio.run(run())


def test_without_grpcio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(salver.errors.MissingExtra, match=r"pip install 'salver\[client\]'"):
        salver.Client("grpc://server")
