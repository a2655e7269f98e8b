"""What this machine lacks, before anything is changed on it: findings with their cure. Reads files only; imports no pyroute2."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OLDEST_KERNEL = (5, 15)
_CAP_NET_ADMIN = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. ``error``: the agent cannot work; ``warning``: it can, but something else may not."""

    level: Literal["error", "warning"]
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}"


def check_platform() -> tuple[Finding, ...]:
    """All findings on this machine, in the calling thread's network namespace; none when all is well."""
    found = (
        kernel_finding(os.uname().release),
        capability_finding(_read("/proc/thread-self/status")),
        tun_finding("/dev/net/tun"),
        forward_finding(_read("/proc/sys/net/ipv4/ip_forward")),
    )
    return tuple(finding for finding in found if finding is not None)


def _read(path: str) -> str:
    """The text of a file; "" when it cannot be read, which is no finding by itself."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def kernel_finding(release: str) -> Finding | None:
    """Whether the kernel is as new as those that this is tested on."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST_KERNEL:
        return None
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Finding(
        "warning", f"Linux {release} is older than {oldest}, the oldest that is tested", f"use a kernel from {oldest} on"
    )


def capability_finding(status: str) -> Finding | None:
    """Whether we may configure the network, by the text of ``/proc/…/status``."""
    effective = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    if effective is None or int(effective[1], 16) >> _CAP_NET_ADMIN & 1:
        return None
    return Finding(
        "error", "the capability CAP_NET_ADMIN is missing", "run as root, or in systemd with AmbientCapabilities=CAP_NET_ADMIN"
    )


def tun_finding(path: str) -> Finding | None:
    """Whether TUN devices can be made by this clone device."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding("error", f"{path} cannot be opened: {os.strerror(error.errno or 0)}", _tun_cure(error.errno, path))
    return None


def _tun_cure(code: int | None, path: str) -> str:
    match code:
        case errno.EACCES | errno.EPERM:
            return "run as root, and give a container the device (--device /dev/net/tun)"
        case errno.ENOENT:
            return f"modprobe tun, or mkdir -p {Path(path).parent} && mknod {path} c 10 200 && chmod 666 {path}"
        case _:
            return "modprobe tun (kernel option CONFIG_TUN)"


def forward_finding(text: str) -> Finding | None:
    """Whether the host forwards packets between its pods and the tunnel; like flannel we do not set it ourselves."""
    if text.strip() != "0":
        return None
    return Finding(
        "warning", "net.ipv4.ip_forward is 0: no packet goes from pods to the tunnel", "sysctl -w net.ipv4.ip_forward=1"
    )
