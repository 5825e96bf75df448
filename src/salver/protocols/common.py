"""Decoders and encoders that dialects over HTTP share: queries, and their values as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salver.codecs.json_numbers import dumps
from salver.interfaces import JSON_HEADERS, HttpAnswer, Query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from salver.interfaces import Head


def query(name: str) -> Callable[[Head, Mapping[str, str], Any], Query]:
    """A decoder for requests that only read."""

    def decode(head: Head, arguments: Mapping[str, str], body: Any) -> Query:
        return Query(name=name, arguments=arguments)

    return decode


def answer(operation: Any, value: Any) -> HttpAnswer:
    """200, and the value as JSON."""
    return HttpAnswer(200, JSON_HEADERS, [dumps(value)])
