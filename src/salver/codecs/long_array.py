"""JSON arrays of many megabytes, decoded a few rows at a time.

A decoder holds the interpreter for as long as its text takes, and with it the loop and everybody
else's requests. So a long text is cut into parts, which take about a millisecond each.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import orjson

from salver.codecs.json_numbers import check_depth, is_one_array, loads, parsed, syntax_error
from salver.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from salver.types import Buffer

PART_BYTES: Final = 64 << 10
LONG_BYTES: Final = 4 * PART_BYTES
_AROUND_BYTES: Final = 4096
"""What stands before and after a long array is shorter than this, or all is decoded in one step."""
LIFTED: Final = "lifted"
_TRIES: Final = 4
"""Ends that are tried near each other before a part is sought that is four times as long."""
_MAX_RANK: Final = 8
_OPENING: Final = re.compile(rb'\s*+((?:\[\s*+){0,8}+)((?:\{\s*+"[^"\\]{0,99}+"|"|))')
_LIST: Final = re.compile(rb"\s*+\[")
_WORD: Final = re.compile(rb'"(?:NaN|-?Infinity)"')
"""What stands for a number, and so between commas that separate numbers."""
_FLAT: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
"""Numbers and whole strings, and what is between them."""
_MAX_DATA: Final = 1024
"""Most arrays that are looked at; what only looks like a request may have millions."""
_DATA: Final = re.compile(rb'"data"\s*+:\s*+\[')


def loads_long(body: Buffer, max_depth: int) -> Any:
    """As `loads`, but a long outermost array, or the only one in an object, such as that of
    `{"instances": [...]}`, is given as a `LongArray`, and not decoded yet.

    Raises: InvalidInput, TooLarge.
    """
    if len(body) > LONG_BYTES:
        check_depth(body, max_depth)
        start = bytes(body[:_AROUND_BYTES]).find(b"[")
        stop = bytes(body[-_AROUND_BYTES:]).rfind(b"]")
        if start >= 0 and stop >= 0:
            found = _with_array(body, start, len(body) - _AROUND_BYTES + stop, max_depth)
            if found is not None:
                return found
    return loads(body, max_depth)


def _with_array(body: Buffer, start: int, stop: int, max_depth: int) -> Any:
    """The body's value, where its first `[` and last `]` belong together; else None.

    Without the text between them no other list can be there.
    """
    try:
        value = loads(bytes(body[:start]) + b"[]" + bytes(body[stop + 1 :]), max_depth)
    except InvalidInput:
        return None
    if value == []:
        return LongArray(body, start + 1, stop, b"[")
    if isinstance(value, dict):
        for key, item in value.items():
            if item == []:
                return value | {key: LongArray(body, start + 1, stop, b'{"":[')}
    return None


def lift_data(body: Buffer) -> tuple[bytes, list[LongArray]]:
    """A request of the Open Inference Protocol with `{LIFTED: 0}`, `{LIFTED: 1}` … for the `data`
    that is a long array of numbers, or of texts that is not nested, and those arrays.
    """
    short: list[bytes] = []
    arrays: list[LongArray] = []
    start = at = 0
    for _ in range(_MAX_DATA):
        opening = _DATA.search(body, at)
        if opening is None:
            break
        at = opening.end()
        stop = _end_of_data(body, at)
        if stop - at > LONG_BYTES:
            short += bytes(body[start : at - 1]), b'{"%b":%d}' % (LIFTED.encode(), len(arrays))
            arrays.append(LongArray(body, at, stop, b'{"":[{"":['))
            start = at = stop + 1
    return b"".join([*short, bytes(body[start:])]), arrays


def _end_of_data(body: Buffer, start: int) -> int:
    """The last bracket of an array of numbers, nested or not, or of numbers and texts; -1 if that
    is not found.
    """
    mark = _first_of(b'"}', body, start, len(body))
    before = bytes(body[max(start, mark - _AROUND_BYTES) : mark]).rstrip(b" \t\r\n,")
    if before.endswith(b"]"):
        return max(start, mark - _AROUND_BYTES) + len(before) - 1
    at, size = start, PART_BYTES
    while at < len(body):
        stop = min(at + size, len(body))
        found: Any = _FLAT.match(body, at, stop)
        end = found.end()
        if end < stop and body[end] in b"[]{}":
            return end if body[end] in b"]" else -1
        if end == at and stop == len(body):
            break
        # Where nothing was found, a string begins that is longer.
        size = 4 * size if end == at else PART_BYTES
        at = end
    return -1


class LongArray:
    """A JSON array whose elements are the text of a body from `start` to `stop`.

    `opening` is JSON that opens it, and what it stands in.
    """

    __slots__ = ("_body", "_opening", "_start", "_stop")

    def __init__(self, body: Buffer, start: int, stop: int, opening: bytes) -> None:
        self._body = body
        self._start = start
        self._stop = stop
        self._opening = opening

    def parts(self) -> Iterator[list[Any]]:
        """Its elements, some at a time. An element that is itself a long array of numbers comes
        alone and as a `LongArray`.

        Raises: InvalidInput.
        """
        for part in self._parts(self._decoded):
            yield [part] if isinstance(part, LongArray) else part

    def texts(self, parse: Callable[[bytes], Any]) -> Iterator[Any]:
        """What `parse` makes of its elements, some at a time: it gets the text of an array.

        Raises: what `parse` raises, but a ValueError only of all that is left.
        """
        for part in self._parts(lambda start, stop: parse(self._text(start, stop))):
            if isinstance(part, LongArray):
                yield from part.texts(parse)
            else:
                yield part

    def whole(self) -> list[Any]:
        """All elements. Raises: InvalidInput."""
        elements: list[Any] = []
        for part in self.parts():
            elements += map(plain, part)
        return elements

    def _parts(self, decode: Callable[[int, int], Any]) -> Iterator[Any]:
        """Where a part ends is guessed by how the first element begins. A part that can be parsed
        was guessed right, for it began between two elements; else another end is tried.
        """
        boundary = self._boundary()
        start, size, tries = self._start, PART_BYTES, 0
        while start <= self._stop:
            stop = self._end_of_part(boundary, start + size)
            part = self._inner(start, stop) if stop - start > LONG_BYTES else None
            try:
                part = part or decode(start, stop)
            except ValueError:
                if stop == self._stop:
                    raise
                tries += 1
                size = (stop - start) * (1 if tries % _TRIES else 4)
                continue
            yield part
            start, size, tries = stop + 1, PART_BYTES, 0

    def _end_of_part(self, boundary: re.Pattern[bytes], least: int) -> int:
        """The next comma from `least` on that may stand between two elements."""
        for at in range(least, self._stop, PART_BYTES):
            found = boundary.search(self._body, at, min(at + PART_BYTES, self._stop))
            if found:
                return found.start(1)
        return self._stop

    def _boundary(self) -> re.Pattern[bytes]:
        """What stands between two elements; its group is the comma."""
        opening: Any = _OPENING.match(self._body, self._start, self._stop)
        brackets, first = opening[1].count(b"["), opening[2]
        if brackets:
            return re.compile(rb"\]\s*+" * brackets + rb"(,)" + rb"\s*+\[" * brackets)
        if first[:1] == b"{":
            key = re.escape(first[1:].strip())
            return re.compile(rb"\}\s*+(,)\s*+\{\s*+" + key)
        first = first and not _WORD.match(self._body, opening.start(2))
        return re.compile(rb'(?<!\\)"\s*+(,)' if first else rb"(,)")

    def _inner(self, start: int, stop: int) -> LongArray | None:
        """A long element as a `LongArray`, if it is an array of numbers."""
        body: Any = memoryview(self._body)
        opening = _LIST.match(body, start, stop)
        end = bytes(body[stop - _AROUND_BYTES : stop]).rstrip()
        if opening is None or end[-1:] != b"]" or self._opening.count(b"[") > _MAX_RANK:
            return None
        if _first_of(b'"{', body, start, stop) < stop or not is_one_array(body[start:stop]):
            return None
        last = stop - _AROUND_BYTES + len(end) - 1
        return LongArray(body, opening.end(), last, self._opening + b"[")

    def _text(self, start: int, stop: int) -> bytes:
        """Some elements as the text of an array. Raises: InvalidInput if there are none."""
        text = bytes(self._body[start:stop])
        if start > self._start and (not text or text.isspace()):
            raise self._syntax_error(start)
        return b"[%b]" % text

    def _decoded(self, start: int, stop: int) -> list[Any]:
        """Raises: ValueError."""
        text = self._text(start, stop)
        try:
            value: list[Any] = parsed(text)
        except orjson.JSONDecodeError:
            if stop == self._stop:
                raise self._syntax_error(start) from None
            raise
        return value

    def _syntax_error(self, start: int) -> InvalidInput:
        """What is wrong with all that follows an element that ended before `start`."""
        before = bytes(self._body[:start])
        opening = self._opening + b"0," * (start > self._start)
        try:
            parsed(opening + bytes(self._body[start:]))
        except orjson.JSONDecodeError as error:
            column = error.colno
            if error.lineno == 1:
                column += len(before[before.rfind(b"\n") + 1 :].decode(errors="replace"))
                column -= len(opening)
            return syntax_error(error.msg, before.count(b"\n") + error.lineno, column)
        return InvalidInput("the body is not valid JSON")


def _first_of(marks: bytes, body: Buffer, start: int, stop: int) -> int:
    """Where the first of these characters is; `stop` if there is none."""
    for at in range(start, stop, PART_BYTES):
        part = bytes(body[at : min(at + PART_BYTES, stop)])
        found = [place for mark in marks if (place := part.find(mark)) >= 0]
        if found:
            return at + min(found)
    return stop


def elements(values: Any) -> Any:
    """All elements of a list, those that are long themselves as a `LongArray`.

    Raises: InvalidInput.
    """
    return list(chain.from_iterable(values.parts())) if isinstance(values, LongArray) else values


def plain(value: Any) -> Any:
    """A decoded value, also of a `LongArray`. Raises: InvalidInput."""
    return value.whole() if isinstance(value, LongArray) else value
