"""Suites of other projects against a running server: what passed, and what is excepted why."""

from __future__ import annotations

from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many cases passed, and those that are excepted by reason."""
    found = terminalreporter.stats
    rows = [("passed", len(found.get("passed", ()))), ("failed", len(found.get("failed", ())))]
    reasons = Counter(report.longrepr[2] for report in found.get("skipped", ()))
    rows += [(reason.removeprefix("Skipped: "), count) for reason, count in reasons.most_common()]
    terminalreporter.section("cases")
    for text, count in rows:
        terminalreporter.write_line(f"{count:6}  {text}")
