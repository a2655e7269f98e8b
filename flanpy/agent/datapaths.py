"""Which datapath runs on this machine: opens the one that was asked for, or the best that works here, and says why.

The TUN device and the underlay's sockets are opened here and belong to the datapath from then on.
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
    """Open ``auto``, ``userspace`` or ``ebpf``. Raises PlatformError, ResourceBusy, InterfaceError or DatapathError.

    When it raises, nothing is left open.
    """
    if kind == "ebpf":
        raise PlatformError("--datapath ebpf: this version has no ebpf datapath; use userspace or auto")
    reason = "asked for" if kind == "userspace" else "auto: the best that this version has"
    return _open_userspace(settings, reason)


def _open_userspace(settings: DatapathSettings, reason: str) -> tuple[Choice, Datapath]:
    from flanpy.datapath.sockets import open_underlay
    from flanpy.datapath.userspace import UserspaceDatapath
    from flanpy.kernel.tun import open_tun

    tun = open_tun(settings.device, settings.queues)
    try:
        underlay = open_underlay(settings.underlay_address, settings.port, settings.queues)
        try:
            datapath = UserspaceDatapath(settings, tun, underlay)
        except BaseException:
            underlay.close()
            raise
    except BaseException:
        tun.close()
        raise
    return Choice("userspace", reason, (*tun.degraded, *underlay.degraded)), datapath
