"""HTTP and gRPC codes of every error, both ways. The one place where they are decided."""

from __future__ import annotations

from typing import Final

from salver import errors
from salver.codecs.json_numbers import dumps
from salver.interfaces import JSON_HEADERS, HttpAnswer

MAX_MESSAGE_LENGTH: Final = 4096
"""Messages quote what clients sent, such as names, which may be as long as a body."""

# class: (HTTP status, gRPC status)
CODES: Final[dict[type[errors.SalverError], tuple[int, int]]] = {
    errors.InvalidInput: (400, 3),
    errors.TooLarge: (413, 8),
    errors.UnsupportedMedia: (415, 3),
    errors.NotFound: (404, 5),
    errors.MethodNotAllowed: (405, 12),
    errors.Unsupported: (501, 12),
    errors.Unauthenticated: (401, 16),
    errors.PermissionDenied: (403, 7),
    errors.Conflict: (409, 9),
    errors.Unavailable: (503, 14),
    # As Triton tells of a full queue; 8 means a message that no repetition makes smaller.
    errors.Overloaded: (429, 14),
    errors.DeadlineExceeded: (504, 4),
    errors.Cancelled: (499, 1),
    errors.ModelFailed: (500, 13),
    # Apart from Unavailable, which clients answer by sending the call again.
    errors.Undeliverable: (502, 10),
    # As Triton answers a load; its own meaning comes from what was asked for.
    errors.LoadFailed: (400, 3),
    errors.MissingExtra: (501, 12),
    errors.ConfigError: (400, 3),
    errors.Internal: (500, 13),
    errors.SalverError: (500, 13),
}

_FROM_HTTP: Final = {http: kind for kind, (http, _) in reversed(CODES.items())}
_FROM_GRPC: Final = {grpc: kind for kind, (_, grpc) in reversed(CODES.items())} | {
    12: errors.Unsupported,
}

REASONS: Final = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def _codes(error: errors.SalverError) -> tuple[int, int]:
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def http_status(error: errors.SalverError) -> int:
    """The HTTP status of an error."""
    return _codes(error)[0]


def grpc_status(error: errors.SalverError) -> int:
    """The gRPC status code of an error."""
    return _codes(error)[1]


def json_refusal(error: errors.SalverError) -> HttpAnswer:
    """An error as `{"error": message}`, the form of most dialects over HTTP; cut like over gRPC."""
    message = error.message[:MAX_MESSAGE_LENGTH]
    return HttpAnswer(http_status(error), JSON_HEADERS, [dumps({"error": message})])


def from_http(status: int, message: str) -> errors.SalverError:
    """The error that a server meant by an HTTP status."""
    fallback = errors.InvalidInput if status < 500 else errors.Internal
    return _FROM_HTTP.get(status, fallback)(message)


def from_grpc(status: int, message: str) -> errors.SalverError:
    """The error that a server meant by a gRPC status."""
    return _FROM_GRPC.get(status, errors.Internal)(message)
