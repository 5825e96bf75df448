from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from salver.observe.cores import cpu_ns, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def _version_2(folder: Path, text: str) -> None:
    (folder / "cpu.max").write_text(text)


def _version_1(folder: Path, quota: str) -> None:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu" / "cpu.cfs_period_us").write_text("100000\n")


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("write", "text", "cores"),
    [
        (_version_2, "max 100000\n", 8),
        (_version_2, "200000 100000\n", 2),
        (_version_2, "150000 100000\n", 2),
        (_version_2, "10000 100000\n", 1),
        (_version_2, "1600000 100000\n", 8),
        (_version_2, "", 8),
        (_version_1, "-1\n", 8),
        (_version_1, "300000\n", 3),
    ],
)
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, write: Callable[[Path, str], None], text: str, cores: int
) -> None:
    write(tmp_path, text)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("_eight_cores")
def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


def test_the_time_of_all_threads_counts() -> None:
    def compute() -> None:
        while time.thread_time_ns() < 100_000_000:
            pass

    before = cpu_ns(os.getpid())
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert cpu_ns(os.getpid()) - before >= 80_000_000


def test_a_process_that_is_gone_has_used_nothing() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert cpu_ns(child) == 0
