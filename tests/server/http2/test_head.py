"""What RFC 9113 allows in a request's head."""

from __future__ import annotations

import pytest

from salver.server.http2.head import MalformedHead, RequestHead

GET = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b=c"), (":authority", "h:1")]


def test_sorts_pseudo_headers_from_headers() -> None:
    head = RequestHead([*GET, ("accept", "*/*"), ("content-length", "12")])
    assert (head.method, head.scheme, head.authority) == ("GET", "http", "h:1")
    assert (head.path, head.query, head.content_length) == ("/a", "b=c", 12)
    assert head.headers == {"accept": "*/*", "content-length": "12", "host": "h:1"}


def test_joins_repeated_headers() -> None:
    head = RequestHead([*GET, ("a", "1"), ("cookie", "x=1"), ("a", "2"), ("cookie", "y=2")])
    assert (head.headers["a"], head.headers["cookie"]) == ("1, 2", "x=1; y=2")


def test_connect_needs_no_path() -> None:
    assert RequestHead([(":method", "CONNECT"), (":authority", "h:1")]).path == ""


@pytest.mark.parametrize(
    "fields",
    [
        GET[1:],
        [GET[0], *GET[2:]],
        [*GET[:2], (":path", "")],
        [*GET, GET[0]],
        [*GET[:3], ("accept", "*/*"), GET[3]],
        [*GET, (":status", "200")],
        [*GET, ("Accept", "*/*")],
        [*GET, ("", "x")],
        [*GET, ("a b", "x")],
        [*GET, ("x", "a\r\nb")],
        [*GET, ("x", "a\0")],
        [*GET, ("connection", "close")],
        [*GET, ("transfer-encoding", "chunked")],
        [*GET, ("te", "gzip")],
        [*GET, ("content-length", "-1")],
        [*GET, ("content-length", "1"), ("content-length", "2")],
        [*GET, ("content-length", "²")],
    ],
)
def test_refuses(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(MalformedHead):
        RequestHead(fields)
