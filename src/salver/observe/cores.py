"""How many processor cores this process may use, by affinity and by the quota of its container, and
how much of their time a process has used.
"""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path
from typing import Final

from salver.clock import NS_PER_S

_CGROUPS: Final = Path("/sys/fs/cgroup")
_TICK_NS: Final = NS_PER_S // os.sysconf("SC_CLK_TCK")


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


def cpu_ns(pid: int) -> int:
    """Processor time that all threads of a process have used, in whole ticks (Linux, proc(5)); 0 if
    it is gone.
    """
    try:
        # The name in brackets may hold anything, brackets and blanks too.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_NS
    except (OSError, IndexError):
        return 0
