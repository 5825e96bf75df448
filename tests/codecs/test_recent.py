from __future__ import annotations

from salver.codecs.recent import Recent


def test_is_bounded():
    recent = Recent(3)
    for key in range(100):
        recent.put(key, key)
    assert len(recent) <= 6
    assert recent.get(0) is None
    assert recent.get(99) == 99


def test_what_is_used_stays():
    recent = Recent(3)
    for key in range(100):
        recent.put(key, key)
        recent.get(7)
    assert recent.get(7) == 7
