"""curl as people type it, against a running server."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess

import numpy as np
import pytest

CURL, OPENSSL = shutil.which("curl"), shutil.which("openssl")
pytestmark = [pytest.mark.tool, pytest.mark.skipif(CURL is None, reason="needs curl")]
VERSION = subprocess.run([CURL, "-V"], capture_output=True, text=True).stdout if CURL else ""
needs_http2 = pytest.mark.skipif("HTTP2" not in VERSION, reason="needs a curl with HTTP/2")
ROWS = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
REQUEST = json.dumps(
    {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [2, 4], "data": ROWS} for name in ("a", "b")
        ]
    }
)
INFER = "/v2/models/two/infer"
PREDICT = "/predict/identity_fp32"


def curl(*arguments, stdin=b""):
    """What curl writes; it fails on its own errors only, not on those of HTTP."""
    command = [CURL, "--silent", "--show-error", "--max-time", "30", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def ask(*arguments, stdin=b""):
    """Status, headers by lower-case name, and body; of several answers the last."""
    done = curl("--include", *arguments, stdin=stdin)
    head, _, body = done.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 1"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def sums(body):
    """The first output of the model that adds."""
    output = json.loads(body)["outputs"][0]
    assert output["name"] == "sum"
    return output["data"]


EXPECTED = [2 * value for row in ROWS for value in row]


# Bodies


def test_json(server):
    status, headers, body = ask(server.url + INFER, "-d", REQUEST)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert sums(body) == EXPECTED


def test_json_flag(server):
    if tuple(map(int, VERSION.split()[1].split(".")[:2])) < (7, 82):
        pytest.skip("needs curl 7.82")
    assert sums(curl(server.url + INFER, "--json", REQUEST)) == EXPECTED


@pytest.mark.parametrize("document", ['{"input": [1, 2, 3]}', '{"inputs": [[1, 2, 3]]}'])
def test_the_plain_door(server, document):
    answer = json.loads(curl(server.url + PREDICT, "-d", document))
    assert (answer.get("prediction") or answer["predictions"][0]) == [1, 2, 3]


def test_a_csv_file_is_sent_as_it_is(server, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("1,2,3\n4,5,6\n")
    answer = json.loads(curl("-T", table, server.url + PREDICT))
    assert answer["predictions"] == [[1, 2, 3], [4, 5, 6]]
    answer = json.loads(curl(server.url + PREDICT, "--data-binary", f"@{table}"))
    assert answer["predictions"] == [[1, 2, 3], [4, 5, 6]]


def test_newlines_that_curl_strips_are_explained(server, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("1,2,3\n4,5,6\n")
    status, _, body = ask(server.url + PREDICT, "-d", f"@{table}")
    assert status == 400
    assert "input 'x'" in json.loads(body)["error"]


def test_a_chunked_upload_from_a_pipe(server):
    arguments = ("-T", "-", "-X", "POST", "-H", "Transfer-Encoding: chunked")
    assert sums(curl(*arguments, server.url + INFER, stdin=REQUEST.encode())) == EXPECTED


def test_a_gzip_body(server, tmp_path):
    packed = tmp_path / "request.gz"
    packed.write_bytes(gzip.compress(REQUEST.encode()))
    arguments = ("-H", "Content-Encoding: gzip", "--data-binary", f"@{packed}")
    assert sums(curl(*arguments, server.url + INFER)) == EXPECTED
    status, _, body = ask("-H", "Content-Encoding: gzip", "-d", "{}", server.url + INFER)
    assert status == 400
    assert "gzip" in json.loads(body)["error"]
    status, _, body = ask("-H", "Content-Encoding: zip", "-d", "{}", server.url + INFER)
    assert status == 415
    assert "'zip'" in json.loads(body)["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_answers(server, coding):
    request = json.dumps({"inputs": [[0, 0, 0]] * 2000})
    arguments = (server.url + PREDICT, "-d", "@-", "-H", f"Accept-Encoding: {coding}")
    plain = curl(*arguments, "--compressed", stdin=request.encode())
    assert json.loads(plain)["predictions"] == [[0, 0, 0]] * 2000
    status, headers, body = ask(*arguments, stdin=request.encode())
    assert status == 200
    assert headers["content-encoding"] == coding
    assert int(headers["content-length"]) == len(body) < len(plain) / 4


def large_request(tmp_path, rows=500_000):
    """A binary request of 6 MB: curl waits for the server's word before it sends it."""
    values = np.arange(3 * rows, dtype=np.float32)
    shape = [rows, 3]
    parameters = {"binary_data_size": values.nbytes}
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    file = tmp_path / "request.bin"
    file.write_bytes(head + values.tobytes())
    header = f"Inference-Header-Content-Length: {len(head)}"
    return values, ("-H", header, "--data-binary", f"@{file}")


def test_a_large_body_waits_for_the_word_to_send_it(server, tmp_path):
    values, arguments = large_request(tmp_path)
    answer = curl("--include", *arguments, server.url + "/v2/models/identity_fp32/infer")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert answer.endswith(values.tobytes())


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(serve, repository, tmp_path):
    server = serve(repository / "two", "--limits-body-bytes", "2000000", "--access-log", "off")
    _, arguments = large_request(tmp_path)
    written = ("--write-out", "%{size_upload}", "--output", tmp_path / "body")
    assert curl(*arguments, *written, server.url + INFER) == b"0"
    message = json.loads((tmp_path / "body").read_text())["error"]
    assert message.endswith("at most 2000000 are taken")


# Methods and connections


def test_head(server):
    status, headers, body = ask("--head", server.url + "/v2/models/two")
    assert status == 200
    assert int(headers["content-length"]) > 100
    assert body == b""


def test_options(server):
    status, headers, _ = ask("-X", "OPTIONS", server.url + INFER)
    assert status == 204
    assert headers["allow"] == "post, options"


def test_a_wrong_method_or_path_is_explained(server):
    status, headers, body = ask(server.url + INFER)
    assert status == 405
    assert headers["allow"] == "post"
    assert json.loads(body)["error"] == "GET is not offered here; POST is"
    status, _, body = ask(server.url + "/v2/model/two")
    assert status == 404
    assert "/v2/model/two" in json.loads(body)["error"]


def test_two_urls_share_a_connection(server):
    written = ("--write-out", "%{num_connects} ", "--output", "/dev/null")
    live, meta = server.url + "/v2/health/live", server.url + "/v2/models/two"
    assert curl(*written, live, *written, meta, *written, live).split() == [b"1", b"0", b"0"]


def test_http_1_0(server):
    status, _, body = ask("--http1.0", server.url + INFER, "-d", REQUEST)
    assert status == 200
    assert sums(body) == EXPECTED


@needs_http2
def test_http_2_with_prior_knowledge(server, tmp_path):
    version = ("--write-out", "%{http_version} %{http_code}", "--output", tmp_path / "answer")
    arguments = ("--http2-prior-knowledge", *version, server.url + INFER, "-d", REQUEST)
    assert curl(*arguments) == b"2 200"
    assert sums((tmp_path / "answer").read_bytes()) == EXPECTED


@needs_http2
def test_http_2_bodies(server, tmp_path):
    values, arguments = large_request(tmp_path)
    url = server.url + "/v2/models/identity_fp32/infer"
    assert curl("--http2-prior-knowledge", *arguments, url).endswith(values.tobytes())
    arguments = ("--http2-prior-knowledge", "-T", "-", "-X", "POST", server.url + INFER)
    assert sums(curl(*arguments, stdin=REQUEST.encode())) == EXPECTED
    packed = tmp_path / "request.gz"
    packed.write_bytes(gzip.compress(REQUEST.encode()))
    arguments = ("-H", "Content-Encoding: gzip", "--data-binary", f"@{packed}")
    assert sums(curl("--http2-prior-knowledge", *arguments, server.url + INFER)) == EXPECTED


@needs_http2
def test_http_2_errors_and_methods(server):
    status, headers, body = ask("--http2-prior-knowledge", server.url + INFER)
    assert (status, headers["allow"]) == (405, "post")
    assert json.loads(body)["error"] == "GET is not offered here; POST is"
    status, headers, body = ask("--http2-prior-knowledge", "--head", server.url + "/v2")
    assert (status, body) == (200, b"")


@needs_http2
def test_an_upgrade_that_is_not_offered_is_ignored(server):
    """`--http2` asks for an upgrade of plain HTTP/1.1, which RFC 9113 has dropped."""
    status, _, body = ask("--http2", server.url + INFER, "-d", REQUEST)
    assert status == 200
    assert sums(body) == EXPECTED


# Streams


def test_a_stream_arrives_line_by_line(server):
    body = curl("--no-buffer", server.url + "/predict/count", "-d", '{"input": 3}')
    assert [json.loads(line)["prediction"] for line in body.splitlines()] == [0, 1, 2]


def test_a_stream_that_breaks_ends_with_its_error(server):
    lines = curl(server.url + "/predict/count", "-d", '{"input": 10}').splitlines()
    assert len(lines) == 10
    assert "cannot count that far" in json.loads(lines[-1])["error"]


def test_a_timeout_in_the_headers(server):
    arguments = ("-H", "X-Request-Timeout-Ms: 20", "-d", '{"input": 1}')
    status, _, body = ask(server.url + "/predict/stuck", *arguments)
    assert status == 504
    assert json.loads(body)["error"].startswith("the request's time was over while ")


# Sockets, keys and TLS


def test_a_unix_socket(serve, repository, tmp_path):
    path = tmp_path / "salver.sock"
    server = serve(repository / "two", "--unix-socket", path, "--access-log", "off")
    body = curl("--unix-socket", path, "http://localhost" + INFER, "-d", REQUEST)
    assert sums(body) == EXPECTED
    assert server.stop() == 0
    assert not path.exists()


def test_an_api_key(serve, repository):
    server = serve(repository / "two", "--api-key", "s3cret", "--access-log", "off")
    status, headers, body = ask(server.url + INFER, "-d", REQUEST)
    assert (status, headers["www-authenticate"]) == (401, "bearer")
    assert "API key" in json.loads(body)["error"]
    status, *_ = ask("-H", "X-API-Key: wrong", server.url + INFER, "-d", REQUEST)
    assert status == 401
    for header in ("Authorization: Bearer s3cret", "X-API-Key: s3cret"):
        assert sums(curl("-H", header, server.url + INFER, "-d", REQUEST)) == EXPECTED
    assert ask(server.url + "/v2/health/ready")[0] == 200


@pytest.fixture(scope="module")
def secure(serve, repository, tmp_path_factory):
    """A server with a certificate of its own, and the certificate's path."""
    if OPENSSL is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = f"{OPENSSL} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    options = ("--tls-cert", certificate, "--tls-key", key, "--access-log", "off")
    return serve(repository / "two", *options), certificate


@pytest.mark.parametrize(
    ("flag", "version"),
    [("--http1.1", b"1.1"), pytest.param("--http2", b"2", marks=needs_http2)],
)
def test_tls_speaks_what_was_negotiated(secure, flag, version, tmp_path):
    server, certificate = secure
    written = ("--write-out", "%{http_version}", "--output", tmp_path / "answer")
    url = f"https://localhost:{server.port}{INFER}"
    assert curl("--cacert", certificate, flag, *written, url, "-d", REQUEST) == version
    assert sums((tmp_path / "answer").read_bytes()) == EXPECTED
    # Over TLS only: curl before 8.0 cannot reuse connections of prior knowledge.
    written = ("--write-out", "%{num_connects} ", "--output", "/dev/null", url, "-d", REQUEST)
    assert curl("--cacert", certificate, flag, *written, *written).split() == [b"1", b"0"]


def test_tls_without_negotiation(secure):
    server, certificate = secure
    url = f"https://127.0.0.1:{server.port}{INFER}"
    assert sums(curl("--cacert", certificate, "--no-alpn", url, "-d", REQUEST)) == EXPECTED


def test_tls_takes_large_bodies(secure, tmp_path):
    server, certificate = secure
    rows = np.ones((100_000, 4), np.float32)
    tensors = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": list(rows.shape),
            "parameters": {"binary_data_size": rows.nbytes},
        }
        for name in ("a", "b")
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    file = tmp_path / "request.bin"
    file.write_bytes(head + 2 * rows.tobytes())
    header = f"Inference-Header-Content-Length: {len(head)}"
    url = f"https://localhost:{server.port}{INFER}"
    for flag in ("--http1.1", *(["--http2"] if "HTTP2" in VERSION else [])):
        arguments = ("--cacert", certificate, flag, "-H", header, "--data-binary", f"@{file}", url)
        assert curl(*arguments).endswith((2 * rows).tobytes() + (0 * rows).tobytes())


def test_plain_http_on_a_tls_port_does_not_hang(secure):
    server, _ = secure
    url = f"http://localhost:{server.port}/v2"
    done = subprocess.run([CURL, "-sS", "--max-time", "10", url], capture_output=True)
    assert done.returncode in (1, 52, 56)
