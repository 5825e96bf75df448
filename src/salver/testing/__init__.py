"""Checks that a plug-in keeps its contract, for the tests of whoever writes one.

Each raises AssertionError with the clause of `interfaces.py` that is broken, and how.
"""

from __future__ import annotations

from salver.testing.protocol import check_protocol
from salver.testing.runtime import check_runtime
from salver.testing.scheduler import check_scheduler
from salver.testing.source import check_source

__all__ = ["check_protocol", "check_runtime", "check_scheduler", "check_source"]
