from __future__ import annotations

from salver.engine.served import version_key


def test_versions_are_ordered_by_number() -> None:
    names = ["10", "beta", "9", "alpha", "1"]
    assert sorted(names, key=version_key) == ["alpha", "beta", "1", "9", "10"]
