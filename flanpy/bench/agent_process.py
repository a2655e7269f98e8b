"""What an agent's process takes: resident memory and CPU time, its children included, read from the lab's own /proc."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flanpy.errors import LabError
from flanpy.lab.cluster import Lab


def resident_mb(lab: Lab, host: str) -> float:
    """Resident memory of an agent and of processes that it has started, 10^6 bytes."""
    total_kb = 0
    for status in _statuses(lab, host):
        total_kb += int(next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), "0"))
    return total_kb * 1024 / 1e6


def _processes(lab: Lab, host: str) -> Iterator[Path]:
    """/proc directories of an agent and its descendants, as seen from here."""
    agent = lab.agent_pid(host)
    if agent is None:
        raise LabError(f"the agent of {host} has ended; {lab.log_tail(host)}")
    family = {agent}
    for entry in sorted(
        (path for path in lab.sandbox.path("/proc").iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
    ):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if int(entry.name) in family or parent in family:
            family.add(int(entry.name))
            yield entry


def _statuses(lab: Lab, host: str) -> Iterator[str]:
    for process in _processes(lab, host):
        yield (process / "status").read_text()


def _run_ns(lab: Lab, host: str) -> int:
    """Time on a CPU of all threads of an agent and its children (schedstat: exact, not sampled at ticks)."""
    return sum(
        int(thread.read_text().split()[0]) for process in _processes(lab, host) for thread in process.glob("task/*/schedstat")
    )


def idle_percent(lab: Lab, hosts: Sequence[str], seconds: float) -> list[float]:
    """CPU time of each agent over so long, in percent of one CPU."""
    before = {host: _run_ns(lab, host) for host in hosts}
    begin = time.monotonic()
    time.sleep(seconds)
    span_s = time.monotonic() - begin
    return [100 * (_run_ns(lab, host) - before[host]) / 1e9 / span_s for host in hosts]
