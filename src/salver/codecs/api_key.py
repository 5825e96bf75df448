"""The form of API keys, which travel in headers of HTTP and of gRPC."""

from __future__ import annotations

from salver.errors import ConfigError


def must_be_sendable(api_key: str) -> None:
    """Raises: ConfigError for a key that a header cannot carry to its other end as it is."""
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        raise ConfigError(
            "api_key: only visible ASCII characters can be sent in a header; choose another key"
        )
