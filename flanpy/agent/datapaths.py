"""Which datapath runs on this machine: opens the one that was asked for, or the best that works here, and says why.

The TUN device and the underlay's sockets are opened here, or taken from the process that an earlier agent has left, and belong to
the datapath from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flanpy.backends import udp
from flanpy.datapath import Datapath, DatapathSettings
from flanpy.datapath.process_user import datapath_user
from flanpy.errors import DatapathError, DatapathWaits, InterfaceError, PlatformError
from flanpy.kernel.netlink import Kernel
from flanpy.model import Address

if TYPE_CHECKING:
    from flanpy.agent.notify import DescriptorStore
    from flanpy.datapath.process import ProcessDatapath
    from flanpy.datapath.process_find import Finder, Found
    from flanpy.datapath.sockets import UnderlaySockets
    from flanpy.kernel.tun import Tun


def require_core() -> None:
    """PlatformError where the compiled core is missing or of another version: an agent ends with it, and does not try for ever."""
    from flanpy.datapath import core  # noqa: F401


@dataclass(frozen=True, slots=True)
class Choice:
    """The datapath that runs, and why this one."""

    kind: str
    reason: str


@dataclass(slots=True)
class Home:
    """Where the datapath process is found again, whom to call, by any thread, when it has ended, who keeps descriptors for us, and what the
    process is to run as, user and group.
    """

    run_dir: Path
    lost: Callable[[], None]
    descriptor_store: DescriptorStore
    user: tuple[int, int] = field(default_factory=datapath_user)
    _finder: Finder | None = None

    @property
    def finder(self) -> Finder:
        """One that has not answered yet is asked on at the next attempt, so it is kept."""
        from flanpy.datapath.process_find import Finder

        if self._finder is None:
            self._finder = Finder(self.run_dir)
        return self._finder

    def close(self) -> None:
        """Hang up on processes that have not answered. Safe to call twice."""
        if self._finder is not None:
            self._finder.close()


def open_datapath(
    kind: str, settings: DatapathSettings, kernel: Kernel, home: Home, *, proven: frozenset[tuple[int, int]] = frozenset()
) -> tuple[Choice, Datapath]:
    """Open ``auto``, ``userspace`` or ``ebpf``. Raises PlatformError, ResourceBusy, InterfaceError or DatapathError.

    When it raises, nothing is left open; a process that was there before may go on. ``proven``: the ``ways`` by which ebpf
    has run in this process before, so that probing them again, which takes as long as opening it, would tell nothing new.
    """
    if kind == "userspace":
        return _open_userspace(settings, kernel, home, "asked for")
    problem = None if ways(settings) <= proven else ebpf_problem(settings.underlay_address, ways(settings), kernel)
    if problem is None:
        try:
            return _open_ebpf(settings, kernel, home, "asked for" if kind == "ebpf" else "auto: every probe passed")
        except DatapathWaits:
            raise
        except (DatapathError, PlatformError) as error:
            if kind == "ebpf":
                raise
            problem = str(error)
    if kind == "ebpf":
        raise PlatformError(f"--datapath ebpf: {problem} (`flanpy datapath probe` tells more)")
    return _open_userspace(settings, kernel, home, f"auto: ebpf cannot run here ({problem})")


def ebpf_problem(underlay_address: Address, needed: frozenset[tuple[int, int]], kernel: Kernel) -> str | None:
    """Why ebpf cannot carry these ``ways`` here, or None."""
    from flanpy.datapath.ebpf_probe import first_problem, probe_all
    from flanpy.kernel.bpf_host import BpfHost

    underlay = BpfHost(kernel).device_of(underlay_address)
    return first_problem(probe_all(underlay, needed=needed))


def ways(settings: DatapathSettings) -> frozenset[tuple[int, int]]:
    """What the datapath has to carry: IP versions of inner packets, each with that of the underlay."""
    inner = (each.version for each in (settings.tunnel_address, settings.tunnel_address6) if each is not None)
    return frozenset((version, settings.underlay_address.version) for version in inner)


def _open_userspace(settings: DatapathSettings, kernel: Kernel, home: Home, reason: str) -> tuple[Choice, Datapath]:
    from flanpy.datapath.ebpf import cleanup
    from flanpy.datapath.ebpf_pins import Pins
    from flanpy.kernel.bpf_host import BpfHost

    if (pins := Pins.of(settings.device)).directory.is_dir():
        pins.require_removable()
        home.finder.end(0)  # it serves programs that go now, with their device
    datapath = _process(settings, home, keep=False, prepare=lambda: cleanup(settings.device, BpfHost(kernel)))
    return Choice("userspace", reason), datapath


def _open_ebpf(settings: DatapathSettings, kernel: Kernel, home: Home, reason: str) -> tuple[Choice, Datapath]:
    from flanpy.datapath.ebpf import EbpfDatapath, EbpfOptions
    from flanpy.datapath.ebpf_pins import Pins
    from flanpy.kernel.bpf_host import BpfHost

    host = BpfHost(kernel)
    underlay = host.device_of(settings.underlay_address)
    if underlay is None:
        raise InterfaceError(f"{settings.underlay_address}: no interface of this machine has this address any more")
    userspace = _process(settings, home, keep=True, prepare=Pins.of(settings.device).make)
    datapath = EbpfDatapath(settings, EbpfOptions(underlay, bypass=settings.ebpf_bypass), userspace, host)
    return Choice("ebpf", f"{reason}; attached by {datapath.hooks}"), datapath


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


def remove_leftovers(kernel: Kernel, home: Home) -> None:
    """Remove what an agent with a datapath has left to carry on, on a node whose backend needs none any more."""
    from flanpy.datapath.ebpf import cleanup
    from flanpy.kernel.bpf_host import BpfHost

    home.finder.end(0)
    home.descriptor_store.close()
    home.descriptor_store.forget()
    cleanup(udp.DEVICE, BpfHost(kernel))


def running_process(run_dir: Path) -> int | None:
    """The pid of the datapath process that an agent has left in this run directory, 0 when it cannot be told, None: there is none."""
    from flanpy.datapath.process_find import is_running

    return is_running(run_dir)


def end_process(run_dir: Path) -> bool:
    """End the datapath process of this run directory; whether there was one. For commands: it may take a while."""
    from flanpy.datapath.process_find import END_LIMIT_S, Finder

    finder = Finder(run_dir)
    try:
        return finder.end(END_LIMIT_S)
    finally:
        finder.close()


def _process(settings: DatapathSettings, home: Home, *, keep: bool, prepare: Callable[[], object]) -> ProcessDatapath:
    """The userspace datapath in its process, the one that is there or another.

    ``prepare`` runs once the port is ours, before the TUN device is opened.
    """
    from flanpy.datapath.process import ProcessDatapath, ProcessOptions

    found = home.finder.look()
    try:
        given = (
            (found.state.tun_fds, found.state.udp_fds)
            if found is not None
            else (home.descriptor_store.tun, home.descriptor_store.udp)
        )
        tun, underlay = _adopt(settings, *given, keep=keep)
        same = found is not None and tun is not None and underlay is not None
        home.descriptor_store.close()  # what was of use has been copied, and the rest would keep a device or a port, in the store too
        home.descriptor_store.forget(tun=tun is None, udp=underlay is None)
        tun, underlay = _complete(settings, found, tun, underlay, keep=keep, prepare=prepare)
    except BaseException:
        if found is not None:
            found.close()
        raise
    home.descriptor_store.keep(tun.fds, underlay.fds)
    options = ProcessOptions(home.run_dir, home.lost, user=home.user)
    return ProcessDatapath(settings, tun, underlay, options, found, same_queues=same)


def _adopt(
    settings: DatapathSettings, tun_fds: tuple[int, ...], udp_fds: tuple[int, ...], *, keep: bool
) -> tuple[Tun | None, UnderlaySockets | None]:
    """Of what is there, what can be used as it is."""
    from flanpy.datapath.sockets import adopt_underlay
    from flanpy.kernel.tun import adopt_tun

    underlay = adopt_underlay(udp_fds, settings.underlay_address, settings.port, settings.queues)
    try:
        return adopt_tun(settings.device, tun_fds, settings.queues, keep=keep), underlay
    except BaseException:
        if underlay is not None:
            underlay.close()
        raise


def _complete(
    settings: DatapathSettings,
    found: Found | None,
    tun: Tun | None,
    underlay: UnderlaySockets | None,
    *,
    keep: bool,
    prepare: Callable[[], object],
) -> tuple[Tun, UnderlaySockets]:
    """Open what could not be adopted."""
    from flanpy.datapath.sockets import open_underlay
    from flanpy.kernel.tun import open_tun

    try:
        if found is not None and tun is None:
            # its device is gone or has another number of queues: nothing flows through it, and it may hold name and port
            found.end()
            found.state.give_up_queues()
        underlay = underlay or open_underlay(settings.underlay_address, settings.port, settings.queues)
        prepare()
        return tun or open_tun(settings.device, settings.queues, keep=keep), underlay
    except BaseException:
        for each in (tun, underlay):
            if each is not None:
                each.close()
        raise
