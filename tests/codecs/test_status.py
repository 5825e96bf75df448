from __future__ import annotations

import pytest

from salver import errors
from salver.codecs.status import (
    CODES,
    REASONS,
    from_grpc,
    from_http,
    grpc_status,
    http_status,
    json_refusal,
)

# What is not told apart, and as what a client sees it.
OVER_HTTP = {
    errors.LoadFailed: errors.InvalidInput,
    errors.ConfigError: errors.InvalidInput,
    errors.MissingExtra: errors.Unsupported,
    errors.Internal: errors.ModelFailed,
    errors.SalverError: errors.ModelFailed,
}
OVER_GRPC = OVER_HTTP | {
    errors.UnsupportedMedia: errors.InvalidInput,
    errors.MethodNotAllowed: errors.Unsupported,
    errors.Overloaded: errors.Unavailable,
}


@pytest.mark.parametrize("kind", CODES)
def test_clients_see_the_class_that_the_server_meant(kind):
    error = kind("why")
    over_http = from_http(http_status(error), error.message)
    over_grpc = from_grpc(grpc_status(error), error.message)
    assert type(over_http) is OVER_HTTP.get(kind, kind)
    assert type(over_grpc) is OVER_GRPC.get(kind, kind)
    assert over_http.message == over_grpc.message == "why"


@pytest.mark.parametrize("kind", CODES)
def test_what_may_be_repeated_stays_so(kind):
    error = kind("")
    for seen in (from_http(http_status(error), ""), from_grpc(grpc_status(error), "")):
        assert seen.retryable == kind.retryable


def test_kinds_of_an_error_share_its_codes():
    assert http_status(errors.TrustRequired("")) == http_status(errors.LoadFailed("")) == 400
    assert grpc_status(errors.TrustRequired("")) == grpc_status(errors.LoadFailed("")) == 3


def test_every_status_has_a_reason():
    assert {status for status, _ in CODES.values()} <= REASONS.keys()


def test_a_status_that_nobody_knows():
    assert type(from_http(418, "")) is errors.InvalidInput
    assert type(from_http(511, "")) is errors.Internal
    assert type(from_grpc(2, "")) is errors.Internal


def test_a_message_that_quotes_a_long_request_is_cut():
    (body,) = json_refusal(errors.InvalidInput("no input " + "x" * 1_000_000)).body
    assert body.startswith(b'{"error":"no input xxx')
    assert len(body) < 5000
