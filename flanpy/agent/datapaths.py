"""Which datapath runs on this machine: opens the one that was asked for, or the best that works here, and says why.

The TUN device and the underlay's sockets are opened here and belong to the datapath from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flanpy.backends import udp
from flanpy.datapath import Datapath, DatapathSettings
from flanpy.errors import DatapathError, InterfaceError, PlatformError
from flanpy.kernel.netlink import Kernel

if TYPE_CHECKING:
    from flanpy.datapath.userspace import UserspaceDatapath


@dataclass(frozen=True, slots=True)
class Choice:
    """The datapath that runs, why this one, and what it has to do without here."""

    kind: str
    reason: str
    degraded: tuple[str, ...] = ()


def open_datapath(kind: str, settings: DatapathSettings, kernel: Kernel, *, proven: bool = False) -> tuple[Choice, Datapath]:
    """Open ``auto``, ``userspace`` or ``ebpf``. Raises PlatformError, ResourceBusy, InterfaceError or DatapathError.

    When it raises, nothing is left open. ``proven``: ebpf has run in this process before, so that probing it again, which takes as long
    as opening it, would tell nothing new.
    """
    if kind == "userspace":
        return _open_userspace(settings, kernel, "asked for")
    problem = _beyond_ebpf(settings) or (None if proven else _ebpf_problem(settings, kernel))
    if problem is None:
        try:
            return _open_ebpf(settings, kernel, "asked for" if kind == "ebpf" else "auto: every probe passed")
        except (DatapathError, PlatformError) as error:
            if kind == "ebpf":
                raise
            problem = str(error)
    if kind == "ebpf":
        raise PlatformError(f"--datapath ebpf: {problem} (`flanpy datapath probe` tells more)")
    return _open_userspace(settings, kernel, f"auto: ebpf cannot run here ({problem})")


def _ebpf_problem(settings: DatapathSettings, kernel: Kernel) -> str | None:
    from flanpy.datapath.ebpf_probe import first_problem, probe_all
    from flanpy.kernel.bpf_host import BpfHost

    underlay = BpfHost(kernel).device_of(settings.underlay_address)
    return first_problem(probe_all(underlay, ipv6=settings.tunnel_address6 is not None))


def _beyond_ebpf(settings: DatapathSettings) -> str | None:
    """Why the BPF programs cannot carry this overlay anywhere, or None."""
    return "its programs do not speak IPv6 on the underlay yet" if settings.underlay_address.version == 6 else None


def _open_userspace(settings: DatapathSettings, kernel: Kernel, reason: str) -> tuple[Choice, Datapath]:
    from flanpy.datapath.ebpf import cleanup
    from flanpy.kernel.bpf_host import BpfHost

    # Of an earlier run with ebpf, whose device is still there; one that still runs holds the port.
    datapath = _userspace(settings, keep=False, prepare=lambda: cleanup(settings.device, BpfHost(kernel)))
    return Choice("userspace", reason, datapath.degraded), datapath


def _open_ebpf(settings: DatapathSettings, kernel: Kernel, reason: str) -> tuple[Choice, Datapath]:
    from flanpy.datapath.ebpf import EbpfDatapath, EbpfOptions
    from flanpy.datapath.ebpf_pins import Pins
    from flanpy.kernel.bpf_host import BpfHost

    host = BpfHost(kernel)
    underlay = host.device_of(settings.underlay_address)
    if underlay is None:
        raise InterfaceError(f"{settings.underlay_address}: no interface of this machine has this address any more")
    userspace = _userspace(settings, keep=True, prepare=Pins.of(settings.device).make)
    datapath = EbpfDatapath(settings, EbpfOptions(underlay, bypass=settings.ebpf_bypass), userspace, host)
    return Choice("ebpf", f"{reason}; attached by {datapath.hooks}", datapath.degraded), datapath


def features_left() -> frozenset[str]:
    """What the programs of an earlier run, which receive until ours do, can take; empty when there are none.

    A lease that said less would make the peers' workers send trains of datagrams, which such programs leave to a socket that nobody
    has open yet.
    """
    from flanpy.datapath.ebpf import FEATURES
    from flanpy.datapath.ebpf_pins import Pins

    try:
        return FEATURES if "prog_fp_decap" in Pins.of(udp.DEVICE).names() else frozenset()
    except (PlatformError, OSError):
        return frozenset()


def remove_leftovers(kernel: Kernel) -> None:
    """Remove what an agent with the ebpf datapath has left to carry on, on a node whose backend needs none any more."""
    from flanpy.datapath.ebpf import cleanup
    from flanpy.kernel.bpf_host import BpfHost

    cleanup(udp.DEVICE, BpfHost(kernel))


def _userspace(settings: DatapathSettings, *, keep: bool, prepare: Callable[[], object]) -> UserspaceDatapath:
    """``prepare`` runs once the port is ours, before the TUN device is opened."""
    from flanpy.datapath.sockets import open_underlay
    from flanpy.datapath.userspace import UserspaceDatapath
    from flanpy.kernel.tun import open_tun

    underlay = open_underlay(settings.underlay_address, settings.port, settings.queues)
    try:
        prepare()
        tun = open_tun(settings.device, settings.queues, keep=keep)
    except BaseException:
        underlay.close()
        raise
    return UserspaceDatapath(settings, tun, underlay)
