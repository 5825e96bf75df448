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
│   └── MissingExtra        a framework is not installed
├── ConfigError             a file, flag or variable is wrong
└── Internal                a bug of ours

Protocols map classes to their own codes in one place: `codecs/status.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, ClassVar, Final, Literal

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


_TRACE: Final = re.compile(r"(?:Original )?Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*")
_ADDRESS: Final = re.compile(r" at (?:address )?0x[0-9a-fA-F]+")
_FOLDERS: Final = re.compile(
    r"""
    # URLs that name a host, and closing tags, are no paths.
    (?P<kept> \b (?!file:) [a-zA-Z][\w+.-]{1,20}:// [^\s/'"`<>] [^\s'"`<>]* | </\w+> )

    # Within quotes a path ends where the quotes do.
    | (?P<quote> ['"`])
      (?: (?:[a-zA-Z][\w+.-]{1,20}://|~\w*)? /+ | [a-zA-Z]:[\\/]+ | \\\\ )
      (?! [\s\\/] )
      (?: (?:\\.|(?!(?P=quote))[^\n\\])* [\\/]+ )?
      (?! (?P=quote) | [\\/] )

    # Elsewhere folders may hold spaces, but neither end nor begin with one.
    | (?<! [\w.…)\]}*/\\] )
      (?: (?:[a-zA-Z][\w+.-]{1,20}:(?=///)|~(?:[a-zA-Z]\w*)?)? /+
          (?: (?! \s | [^\s/.]*\.[^\s/]*+\s ) [^\n/'"`,;:<>|]+ (?<! \s ) /+ )*
        | (?: [a-zA-Z]:[\\/]+ | \\\\+ (?=[\w.$-]+\\) )
          (?: (?! \s ) [^\n\\/'"`,;:<>|]+ (?<! \s ) [\\/]+ )*
      )
      (?= [^\s\\/'"`,;:)\]}>|] )
    """,
    re.VERBOSE,
)


def told(error: BaseException) -> str:
    """What a client may hear of any exception: its type and its text without places."""
    name, text = type(error).__name__, text_of(error)
    return f"{name}: {text}" if text else name


def text_of(error: BaseException) -> str:
    """An exception's own text without places; of a failed system call what failed and on which
    file. Errors of this tree were written for clients.
    """
    if isinstance(error, SalverError):
        return error.message
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        files = [_last(name) for name in (error.filename, error.filename2)]
        text = ": ".join([str(error.strerror), *filter(None, files)])
    else:
        try:
            text = str(error)
        except Exception:  # somebody else's __str__
            text = ""
    return without_places(text)


def _last(path: object) -> str:
    """The last component, quoted; nothing for what is no path, such as a descriptor."""
    if not isinstance(path, str | bytes):
        return ""
    whole = os.fsdecode(path)
    return repr(re.split(r"[\\/]", whole.rstrip("\\/"))[-1] or whole)


def without_places(text: str) -> str:
    """Text as clients may see it: of absolute paths the last component, no addresses in memory,
    of tracebacks the last line.
    """
    text = _ADDRESS.sub("", _TRACE.sub("", text))
    return _FOLDERS.sub(lambda found: found["kept"] or found["quote"] or "", text)
