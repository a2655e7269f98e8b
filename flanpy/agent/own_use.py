"""What this process has used so far, read from /proc and the clock; for metrics."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flanpy.agent.metrics import ProcessFigures


def read_own_use(uptime_s: float) -> ProcessFigures:
    """The figures now; ``uptime_s`` is how long the agent runs."""
    used, now_s = os.times(), time.time()
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return ProcessFigures(
        cpu_seconds=round(used.user + used.system, 3),
        resident_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        open_fds=len(os.listdir("/proc/self/fd")),  # noqa: PTH208  names suffice
        start_time_s=round(now_s - uptime_s, 3),
        now_s=now_s,
    )
