"""What an agent takes: memory and CPU time of its process, those that it has started and the datapath's, read from the lab's own /proc."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flanpy.errors import LabError
from flanpy.lab.cluster import Lab
from flanpy.lab.status import agent_status

ANSWERED_S = 0.5


def resident_mb(lab: Lab, host: str) -> float:
    """Resident memory of an agent and of processes that it has started, 10^6 bytes."""
    total_kb = 0
    for status in _statuses(lab, host):
        total_kb += int(next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), "0"))
    return total_kb * 1024 / 1e6


def _processes(lab: Lab, host: str) -> Iterator[Path]:
    """/proc directories of an agent, its descendants and its datapath process (an adopted one is none of them), as seen from here."""
    agent = lab.agent_pid(host)
    if agent is None:
        raise LabError(f"the agent of {host} has ended; {lab.log_tail(host)}")
    datapath = agent_status(lab, host)["datapath"]["process"]
    family = {agent} if datapath is None else {agent, datapath["pid"]}
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


def _run_ns(processes: Iterable[Path]) -> int:
    """Time on a CPU of all their threads (schedstat: exact, not sampled at ticks)."""
    return sum(int(thread.read_text().split()[0]) for process in processes for thread in process.glob("task/*/schedstat"))


def idle_percent(lab: Lab, hosts: Sequence[str], seconds: float) -> list[float]:
    """CPU time of each agent over so long, in percent of one CPU."""
    processes = {host: list(_processes(lab, host)) for host in hosts}
    time.sleep(ANSWERED_S)  # they have been asked which they are
    before = {host: _run_ns(processes[host]) for host in hosts}
    begin = time.monotonic()
    time.sleep(seconds)
    span_s = time.monotonic() - begin
    return [100 * (_run_ns(processes[host]) - before[host]) / 1e9 / span_s for host in hosts]
