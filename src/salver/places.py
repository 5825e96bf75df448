"""What clients may read of any exception: its text without paths, addresses and traces; and what
only the log may tell.
"""

from __future__ import annotations

import os
import re
import traceback
from typing import Final

from salver.errors import SalverError

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


def hidden_cause(error: SalverError) -> str:
    """For the log alone, lines that name an error's cause; empty if its message tells of it."""
    cause = error.__cause__
    if cause is None or (str(cause) or repr(cause)) in error.message:
        return ""
    return "".join(traceback.format_exception_only(cause))


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
