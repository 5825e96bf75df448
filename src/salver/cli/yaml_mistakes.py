"""Every mistake in a YAML file of options, where reading it stops at the first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import yaml

from salver.config import Options, parse, walk
from salver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T", bound=Options)

_MOST: Final = 100
_WORDS: Final = {
    "bool": "yes or no",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "a group of options",
    "null": "nothing",
}


class Finding(NamedTuple):
    """A mistake: the file and line (0: the whole file), the option, what is wrong, what to do."""

    file: str
    line: int
    key: str
    problem: str
    remedy: str = ""


def mistakes(text: str, struct: type[T], where: str) -> tuple[list[Finding], T]:
    """Every mistake in `text`, and the options that are left without the wrong ones.

    A wrong option is blanked out and the rest is read again, so that lines keep their numbers.
    """
    found: list[Finding] = []
    lines = text.splitlines()
    for _ in range(_MOST):
        try:
            return found, parse("\n".join(lines), struct, where)
        except ConfigError as error:
            finding = _finding(error.message, struct, where)
            found.append(finding)
            span = _span("\n".join(lines), finding.line - 1)
            if span is None:
                break
            lines[span[0] : span[1]] = [""] * (span[1] - span[0])
    return found, struct()


def line_of(text: str, key: str) -> int:
    """The line of a top-level option, counted from 1; 0 if it is not there."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    entries = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((name.start_mark.line + 1 for name, _ in entries if name.value == key), 0)


def finding_of(message: str, file: str, line: int = 0, key: str = "") -> Finding:
    """A finding from an error's message, which ends with the remedy if it has one."""
    problem, remedy = message, ""
    for mark in (". Remedy: ", ". If you ", "; ", ": needs ", ": name one "):
        if mark in message:
            problem, _, remedy = message.rpartition(mark)
            remedy = (mark + remedy).lstrip(".;: ").removeprefix("Remedy: ")
            break
    if near := re.search(r" Did you mean '(.+?)'\?", message):
        problem, remedy = message[: near.start()], f"did you mean {near[1]!r}?"
    return Finding(file, line, key, problem.removesuffix("."), remedy)


def _finding(message: str, struct: type[Options], where: str) -> Finding:
    """Takes `file:line: key: what` or `file:line: unknown key 'key'.` apart."""
    found = re.match(re.escape(where) + r"(?::(\d+))?: (.*)", message, re.DOTALL)
    line, rest = (int(found[1] or 0), found[2]) if found else (0, message)
    if unknown := re.match(r"unknown key '(.+?)'", rest):
        return finding_of(rest, where, line, unknown[1])
    key, separator, problem = rest.partition(": ")
    if not separator or " " in key:
        return finding_of(rest, where, line)
    problem = re.sub(r"`([^`]+)`", lambda found: _in_words(found[1]), problem)
    return Finding(where, line, key, problem[:1].lower() + problem[1:], _help(struct, key))


def _in_words(types: str) -> str:
    """`int | null` as somebody who writes YAML would say it."""
    return " or ".join(_WORDS.get(name, name) for name in types.split(" | "))


def _help(struct: type[Options], key: str) -> str:
    """What an option is for, with its default."""
    plain = re.sub(r"\[.*", "", key)
    for name, _, meta, default in walk(struct):
        if name == plain:
            return f"{meta.description} Default: {default!r}"
    return ""


def _span(text: str, line: int) -> tuple[int, int] | None:
    """The lines of the innermost option that covers `line` and can be left out alone."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    best = None
    for start, end in _entries(node):
        if start <= line < end:
            best = start, end
    return best


def _entries(node: Any) -> Iterator[tuple[int, int]]:
    """Options as ranges of lines, outer ones first. One that is alone in its group stands for the
    group, and a list for all that it holds: half of them would only be another mistake.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        start = key.start_mark.line
        last = value.end_mark
        end = last.line + 1 if last.column or last.line == start else last.line
        yield start, max(end, start + 1)
        if isinstance(value, yaml.MappingNode) and len(value.value) > 1:
            yield from _entries(value)
