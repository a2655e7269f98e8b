"""What the figures were measured on: kernel, CPUs, versions; and the machine's CPU time. Reads files and version strings only."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flanpy

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of all CPUs together since boot: at work, and taken by the hypervisor."""

    busy_s: float
    stolen_s: float

    def since(self, earlier: CpuTime) -> CpuTime:
        """The time between two readings."""
        return CpuTime(self.busy_s - earlier.busy_s, self.stolen_s - earlier.stolen_s)


def parse_cpu_time(stat: str) -> CpuTime:
    """The first line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice (proc(5)).

    Guest time is part of user already.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in stat.split()[1:9])
    return CpuTime((user + nice + system + irq + softirq) / TICKS_A_SECOND, steal / TICKS_A_SECOND)


def cpu_time() -> CpuTime:
    """CPU time of the whole machine up to now."""
    return parse_cpu_time(Path("/proc/stat").read_text())


def _version(*argv: str) -> str:
    try:
        text = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    return ((text.stdout or text.stderr).strip().splitlines() or ["?"])[0]


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "?"


def describe() -> dict[str, Any]:
    """Everything about this machine that a reader needs to judge the figures."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "cpu_model": _cpu_model(),
        "memory_kb": int(_read("/proc/meminfo").split()[1]),
        "hypervisor": _read("/sys/hypervisor/type") if Path("/sys/hypervisor/type").exists() else _virtualization(),
        "load_before": list(os.getloadavg()),
        "congestion_controls": _read("/proc/sys/net/ipv4/tcp_available_congestion_control").split(),
        "python": platform.python_version(),
        "iperf3": _version("iperf3", "--version"),
        "iproute2": _version("ip", "-V"),
        "flanpy": flanpy.__version__,
    }


def _virtualization() -> str:
    return "yes" if " hypervisor" in _read("/proc/cpuinfo") else "none seen"
