"""What a process uses, by /proc: CPU time, memory, descriptors, threads. Pids are those of this process's own numbering."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.clusters import Cluster

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Use:
    """One look at a process."""

    at_s: float
    cpu_s: float
    rss_bytes: int
    descriptors: int
    threads: int

    def cpu_share(self, later: Use) -> float:
        """The share of one CPU that it has used between the two looks."""
        return (later.cpu_s - self.cpu_s) / (later.at_s - self.at_s)


def use_of(proc: Path) -> Use:
    """What the process of this directory of /proc uses now."""
    fields = (proc / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return Use(
        at_s=time.monotonic(),
        cpu_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        descriptors=len(list((proc / "fd").iterdir())),
        threads=int(fields[17]),
    )


def agent_use(cluster: Cluster, host: str) -> Use:
    """What the agent of a host uses now."""
    pid = cluster.lab.agent_pid(host)
    assert pid is not None, f"the agent of {host} does not run"
    return use_of(cluster.sandbox.path(f"/proc/{pid}"))


def idle_share(cluster: Cluster, host: str, seconds: float = 2.0) -> float:
    """The share of one CPU that the agent of a host uses over some seconds."""
    before = agent_use(cluster, host)
    time.sleep(seconds)  # the time over which the use of CPU is taken
    return before.cpu_share(agent_use(cluster, host))
