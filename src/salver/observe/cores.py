"""How many processor cores this process may use: by affinity, and by the quota of its container."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """At least 1. A quota of one and a half cores counts as two."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return min(cores, max(ceil(quota), 1)) if quota else cores


def _quota(cgroups: Path) -> float:
    """Cores that the control group may use (cgroups(7), version 2 or 1); 0 for any number.

    In a container the root of what is mounted is the container's own group.
    """
    try:
        limit, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return 0
    try:
        return max(int(limit) / int(period), 0)
    except (ValueError, ZeroDivisionError):
        return 0  # "max", or -1 in version 1
