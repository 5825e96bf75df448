"""How a broken contract is told: the clause, and what was found instead."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def expect(is_kept: bool, clause: str, found: object) -> None:
    """Raises: AssertionError with the clause and what broke it, unless it is kept."""
    __tracebackhide__ = True
    if not is_kept:
        raise AssertionError(f"{clause}; {found}")


@contextmanager
def only(clause: str, *kinds: type[Exception]) -> Iterator[None]:
    """Lets through what may be raised. Raises: AssertionError with the clause for all else."""
    __tracebackhide__ = True
    try:
        yield
    except Exception as error:
        if isinstance(error, (*kinds, AssertionError)):
            raise
        raise AssertionError(f"{clause}; it raised {type(error).__name__}: {error}") from error
