from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.config import Limits
from salver.errors import InvalidInput, Unauthenticated, UnsupportedMedia
from salver.protocols.kserve_v2 import KserveV2
from salver.server.head import (
    HeadReader,
    accepted_encoding,
    check_key,
    content_encoding,
    is_open,
    timeout_ns,
)
from salver.server.router import Router

HEADS = HeadReader(Limits(), Router([KserveV2(Limits())]), "")


def read(*lines):
    return HEADS.read("\r\n".join([*lines, "", ""]).encode("latin-1"))


def test_a_head_says_everything_that_follows_from_it():
    head = read(
        "POST /v2/models/a%20b/versions/3/infer?x=1 HTTP/1.1",
        "Host: here",
        "Content-LENGTH: 5  ",
        "X-Request-Timeout-Ms: 1.5",
        "X-Request-Id: 7",
        "Accept-Encoding: deflate, gzip",
    )
    assert head.error is None
    assert head.endpoint is not None
    assert head.arguments == {"model": "a b", "version": "3"}
    assert head.query == "x=1"
    assert head.length == 5
    assert head.timeout_ns == 1_500_000
    assert head.request_id == "7"
    assert head.accepts == "gzip"
    assert head.keep_alive
    assert not head.must_close


def test_repeated_fields_are_joined():
    head = read("GET /v2 HTTP/1.1", "Host: a", "A: 1", "a: 2")
    assert head.headers["a"] == "1, 2"


def test_only_trusted_heads_are_remembered():
    heads = HeadReader(Limits(), Router([KserveV2(Limits())]), "")
    good = b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n"
    bad = b"GET /v2 HTTP/1.1\r\n\r\n"
    long = good[:-2] + b"A: " + b"a" * 3000 + b"\r\n\r\n"
    for raw in (good, bad, long):
        heads.remember(raw, heads.read(raw))
    assert heads.known(good) is not None
    assert heads.known(bad) is None
    assert heads.known(long) is None


def test_what_is_remembered_is_bounded():
    heads = HeadReader(Limits(), Router([]), "")
    for index in range(3000):
        raw = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % index
        heads.remember(raw, heads.read(raw))
    assert heads.known(raw) is not None
    assert heads.known(b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\n") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP;q=0.5, br", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", ""),
        ("br, zstd", ""),
        ("gzip;Q=0.2, deflate ; q=0.7", "deflate"),
        ("gzip;q=nonsense, deflate;q=0", ""),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip;q=0, *;q=0.1", "deflate"),
        ("gzip, *;q=0", "gzip"),
        ("identity", ""),
    ],
)
def test_accepted_encoding(value, expected):
    assert accepted_encoding(value) == expected


def test_content_encoding():
    assert content_encoding("Identity") == ""
    assert content_encoding("GZip") == content_encoding("x-gzip") == "gzip"
    with pytest.raises(UnsupportedMedia, match="br"):
        content_encoding("br")


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf", "1e300", ""])
def test_a_timeout_must_be_a_time(value):
    with pytest.raises(InvalidInput, match="milliseconds"):
        timeout_ns(value)


def test_the_shortest_timeout_is_not_none():
    assert timeout_ns("1e-9") == 1
    assert timeout_ns(None) == 0


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "k"}, {"authorization": "Basic k"}, {"x-api-key": "k, k"}],
)
def test_a_wrong_key_is_refused(headers):
    with pytest.raises(Unauthenticated):
        check_key(headers, "k")


def test_open_paths():
    assert is_open("/")
    assert is_open("/v2/health/ready")
    assert is_open("/page/app.js")
    assert not is_open("/page/state")
    assert not is_open("/v2/models/m")


@given(raw=st.binary(max_size=300))
def test_any_bytes_make_a_head_or_an_error(raw):
    head = HEADS.read(raw + b"\r\n\r\n")
    assert head.error is not None or head.endpoint is not None
