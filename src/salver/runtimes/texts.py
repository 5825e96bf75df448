"""Elements of BYTES as text, for models that take strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salver.errors import InvalidInput

if TYPE_CHECKING:
    from salver.types import Array


def texts(values: Array, name: str, *, must_encode: bool = False) -> list[str]:
    """Elements of the input `name` as strings, in row-major order.

    `must_encode` also refuses lone surrogates, which JSON can carry and which have no UTF-8.

    Raises: InvalidInput for what is not UTF-8.
    """
    items = values.ravel().tolist()
    try:
        if must_encode:
            for item in items:
                if isinstance(item, str):
                    item.encode()
        return [item if isinstance(item, str) else bytes(item).decode() for item in items]
    except UnicodeError:
        raise InvalidInput(f"input {name!r}: a value is not UTF-8 text") from None
