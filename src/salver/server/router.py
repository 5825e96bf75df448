"""Which endpoint a method and path mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from salver.errors import MethodNotAllowed, NotFound, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from salver.interfaces import Endpoint, HttpProtocol

_ARGUMENT: Final = re.compile(r"\\\{(\w+)\\\}")
_NONE: Final[Mapping[str, str]] = {}


class Router:
    """Looks endpoints up: fixed paths in a table, templates in the order of their definition."""

    def __init__(self, protocols: Iterable[HttpProtocol]) -> None:
        self.endpoints: list[Endpoint] = []
        self._protocol_of: dict[int, HttpProtocol] = {}
        self._fixed: dict[str, list[Endpoint]] = {}
        self._templates: list[tuple[re.Pattern[str], Endpoint]] = []
        for protocol in protocols:
            for endpoint in protocol.endpoints():
                self.endpoints.append(endpoint)
                self._protocol_of[id(endpoint)] = protocol
                if "{" in endpoint.path:
                    self._templates.append((_pattern(endpoint.path), endpoint))
                else:
                    self._fixed.setdefault(endpoint.path, []).append(endpoint)

    def find(self, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]]:
        """The endpoint and the arguments in its path.

        Raises: NotFound, MethodNotAllowed naming the methods there are.
        """
        found = self._all(path)
        wanted = "GET" if method == "HEAD" else method
        for endpoint, arguments in found:
            if wanted in endpoint.methods:
                return endpoint, arguments
        if not found:
            templates = (endpoint.path for endpoint in self.endpoints if endpoint.is_offered)
            known = [_filled(template, path) for template in templates]
            raise NotFound(f"there is nothing at {path[:200]!r}.{did_you_mean(path[:200], known)}")
        offered = ", ".join(self.methods(path))
        hint = self._below(found[0][0].path, path, wanted)
        raise MethodNotAllowed(f"{method} is not offered here; {offered} is{hint}")

    def _below(self, template: str, path: str, method: str) -> str:
        """Where a method is offered that `template` itself, such as a model's path, does not."""
        longer = (e.path for e in self.endpoints if method in e.methods and "{" in template)
        found = next((other for other in longer if other.startswith(template)), "")
        return f". Did you mean {_filled(found, path)!r}?" if found else ""

    def methods(self, path: str) -> list[str]:
        """The methods that a path takes, none if there is no such path."""
        methods = {method for endpoint, _ in self._all(path) for method in endpoint.methods}
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))

    def protocol_of(self, endpoint: Endpoint) -> HttpProtocol:
        """The protocol that defined an endpoint."""
        return self._protocol_of[id(endpoint)]

    def _all(self, path: str) -> list[tuple[Endpoint, Mapping[str, str]]]:
        fixed = self._fixed.get(path)
        if fixed is not None:
            return [(endpoint, _NONE) for endpoint in fixed]
        matches = ((pattern.fullmatch(path), endpoint) for pattern, endpoint in self._templates)
        found = [(endpoint, match) for match, endpoint in matches if match is not None]
        # `m:predict` is not also the name of a model: the first template that matches decides.
        return [(e, match.groupdict()) for e, match in found if e.path == found[0][0].path]


def _pattern(template: str) -> re.Pattern[str]:
    """`{name}` matches one path segment, in front of `:predict` also a part of one."""
    return re.compile(_ARGUMENT.sub(r"(?P<\1>[^/]+)", re.escape(template)))


def _filled(template: str, path: str) -> str:
    """A template with what stands in `path` at the same places, up to a colon."""
    segments = template.split("/")
    for index, (segment, word) in enumerate(zip(segments, path[:200].split("/"), strict=False)):
        if segment.startswith("{") and word:
            segments[index] = word.partition(":")[0] + segment.partition("}")[2]
    return "/".join(segments)
