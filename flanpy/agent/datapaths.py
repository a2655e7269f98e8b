"""Which datapath runs on this machine: opens the one that was asked for, or the best that works here, and says why.

Opens descriptors through ``kernel.tun`` and ``datapath.sockets``; what is opened belongs to the datapath that is returned.
"""

from __future__ import annotations

from dataclasses import dataclass

from flanpy.datapath import Datapath, DatapathSettings
from flanpy.errors import PlatformError


@dataclass(frozen=True, slots=True)
class Choice:
    """The datapath that runs, why this one, and what it has to do without here."""

    kind: str
    reason: str
    degraded: tuple[str, ...] = ()


def open_datapath(kind: str, settings: DatapathSettings) -> tuple[Choice, Datapath]:
    """Open ``auto``, ``userspace`` or ``ebpf``. Raises PlatformError, ResourceBusy or DatapathError; then nothing is left open."""
    if kind == "ebpf":
        raise PlatformError("--datapath ebpf: this version has no ebpf datapath; use userspace or auto")
    from flanpy.datapath.userspace import open_userspace

    datapath, degraded = open_userspace(settings)
    reason = "asked for" if kind == "userspace" else "auto: the best that this version has"
    return Choice("userspace", reason, degraded), datapath
