"""The one tree of errors. A message says what, where and the remedy; never paths or traces.

SalverError
├── InvalidInput            the request is wrong: name, dtype, shape, value, syntax
│   ├── TooLarge            a limit on size, count or depth
│   └── UnsupportedMedia    a content type or encoding that the model or protocol does not take
├── NotFound                no such model, version, method or route
├── MethodNotAllowed        the route exists, the HTTP method does not
├── Unsupported             understood, but not offered
├── Unauthenticated         no key, or a wrong one
├── PermissionDenied        a key without this right
├── Conflict                the command contradicts the present state
├── Unavailable             the model is not ready, or the server is draining
├── Overloaded              a queue is full
├── DeadlineExceeded        the call's own deadline passed
├── Cancelled               the client went away or cancelled
├── ModelFailed             the model raised on this request
├── Undeliverable           an instance died and the call may not be run again
├── LoadFailed              a model could not be loaded
│   ├── TrustRequired       opening the file would run code from whoever made it
│   ├── MissingExtra        a framework is not installed
│   └── LoadInterrupted     whoever loaded it was killed; the files may be fine
├── ConfigError             a file, flag or variable is wrong
└── Internal                a bug of ours

Protocols map classes to their own codes in one place: `codecs/status.py`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Blame = Literal["client", "model", "capacity", "server"]


class SalverError(Exception):
    """Base of everything Salver reports to a user or a client."""

    blame: ClassVar[Blame] = "server"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        # A lone surrogate, which JSON and names of files can hold, has no form on any wire.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class InvalidInput(SalverError, ValueError):
    blame = "client"


class TooLarge(InvalidInput):
    pass


class UnsupportedMedia(InvalidInput):
    pass


class NotFound(SalverError):
    blame = "client"


class MethodNotAllowed(SalverError):
    blame = "client"


class Unsupported(SalverError):
    blame = "client"


class Unauthenticated(SalverError):
    blame = "client"


class PermissionDenied(SalverError):
    blame = "client"


class Conflict(SalverError):
    blame = "client"


class Unavailable(SalverError):
    blame = "capacity"
    retryable = True


class Overloaded(SalverError):
    blame = "capacity"
    retryable = True


class DeadlineExceeded(SalverError):
    blame = "capacity"


class Cancelled(SalverError):
    blame = "client"


class ModelFailed(SalverError):
    blame = "model"


class Undeliverable(SalverError):
    retryable = True


class LoadFailed(SalverError):
    blame = "model"


class TrustRequired(LoadFailed):
    pass


class MissingExtra(LoadFailed):
    pass


class LoadInterrupted(LoadFailed):
    retryable = True


class ConfigError(SalverError):
    blame = "client"


class Internal(SalverError):
    pass


_LONGEST_NAME = 100
_MOST_NAMES = 200
_MOST_LISTED = 20


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `known`, or nothing. Stands after a full stop.

    Comparing takes microseconds for each name, so of many only those count that begin alike.
    """
    if len(word) > _LONGEST_NAME:
        return ""
    names = list(known)
    if len(names) > _MOST_NAMES:
        names = [name for name in names if name[:2] == word[:2]][:_MOST_NAMES]
    near = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Sequence[str], nothing: str = "none") -> str:
    """Names for a message: the first of many and how many more there are."""
    more = len(names) - _MOST_LISTED
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(names[:_MOST_LISTED]) + rest or nothing
