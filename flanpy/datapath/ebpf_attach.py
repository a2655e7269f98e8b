"""Hangs a program into a device's traffic control hook, swaps it there without a gap, and sees whether it still hangs.

Two ways, one Protocol: tcx links (Linux 6.6), pinned, so that they outlive us; and filters of a clsact qdisc before that, which
the kernel keeps by itself. The second speaks netlink, so it lives in ``kernel.tc`` and is handed in.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_pins import Pins

RELEASE_S = 1.0
"""The kernel frees a link that was let go from a work queue; a busy machine takes its time for it."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a program belongs: the interface (by index) and the direction there."""

    program: str
    ifindex: int
    egress: bool = False


Sight = tuple[object, ...]


class TcHooks(Protocol):
    """A way to attach programs. ``name`` says which: ``tcx`` or ``clsact``."""

    name: str

    def attached(self, spot: Spot) -> int | None:
        """The kernel's id of our program at this spot, or None when ours is not there."""

    def look(self, spots: Iterable[Spot]) -> Sight:
        """What hangs there, to be compared with an earlier look: equal ones mean that nothing has happened there. Raises OSError."""

    def attach(self, spot: Spot, program: bpf.Fd) -> None:
        """Our program at this spot is this one from now on; what hung there before is swapped atomically. Raises OSError."""

    def detach(self, spot: Spot) -> None:
        """Nothing of ours at this spot any more; fine when there was nothing."""

    def sweep(self, keep: Iterable[Spot]) -> bool:
        """Nothing of ours anywhere but at these spots; whether there was anything."""


class TcxHooks:
    """tcx links, pinned as ``link_PROGRAM``."""

    name = "tcx"

    def __init__(self, pins: Pins) -> None:
        self._pins = pins

    def attached(self, spot: Spot) -> int | None:
        """By the pinned link: somebody who detaches it, or removes the device, leaves it without an interface."""
        try:
            link = self._pins.open(f"link_{spot.program}")
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return self._by_the_kernel(spot)
        if link is None:
            return None
        with link:
            program, ifindex = bpf.link_target(link)
            return program if ifindex == spot.ifindex else None

    def _by_the_kernel(self, spot: Spot) -> int | None:
        """The same where bpffs is read-only, so that no link can be opened: the pinned program hangs there, or it does not."""
        program = self._pins.look(f"prog_{spot.program}")
        if program is None:
            return None
        with program:
            pinned = bpf.object_id(program)
        return pinned if pinned in bpf.attached_programs(spot.ifindex, _side(spot)) else None

    def look(self, spots: Iterable[Spot]) -> Sight:
        """One question a spot, which no link has to be opened for."""
        return tuple(bpf.attached_since(spot.ifindex, _side(spot)) for spot in spots)

    def attach(self, spot: Spot, program: bpf.Fd) -> None:
        """Swap in the link that is there, or make one."""
        name = f"link_{spot.program}"
        if self.attached(spot) is not None:
            link = self._pins.open(name)
            if link is not None:
                with link:
                    bpf.update_link(link, program)
                return
        self._pins.remove(name)
        with _create(program, spot.ifindex, _side(spot)) as link:
            self._pins.put(name, link)

    def detach(self, spot: Spot) -> None:
        """With its pin the link goes, and with the link the program."""
        self._pins.remove(f"link_{spot.program}")

    def sweep(self, keep: Iterable[Spot]) -> bool:
        """A program has one link, which ``attach`` has moved already: only programs that hang nowhere any more are left."""
        kept = {f"link_{spot.program}" for spot in keep}
        gone = [name for name in self._pins.names() if name.startswith("link_") and name not in kept]
        for name in gone:
            self._pins.remove(name)
        return bool(gone)


def _side(spot: Spot) -> int:
    return bpf.TCX_EGRESS if spot.egress else bpf.TCX_INGRESS


def _create(program: bpf.Fd, ifindex: int, attach_type: int) -> bpf.Fd:
    """A new link. One that somebody has just removed holds the program's place until the kernel gets round to it."""
    deadline = time.monotonic() + RELEASE_S
    while True:
        try:
            return bpf.create_link(program, ifindex, attach_type)
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def has_tcx(program: bpf.Fd) -> bool:
    """Whether this kernel knows tcx: asked with an interface that cannot be, which only a kernel that knows it looks for."""
    try:
        bpf.create_link(program, 0x7FFFFFFF, bpf.TCX_INGRESS).close()
    except OSError as error:
        return error.errno in (errno.ENODEV, errno.ENXIO)
    return True
