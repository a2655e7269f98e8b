"""BPF filters of a clsact qdisc: attach, swap, find, remove; for kernels without tcx (before Linux 6.6).

The qdisc may be there already and belong to somebody else, as may other filters: ours is known by its place (handle and
priority) and its name, nothing else is touched, and a qdisc is never removed. Swapping replaces the program of the filter in one
step (cls_bpf), so no packet passes without it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

from flanpy.kernel.messages import CREATE, EXCLUSIVE, REPLACE, attribute, attributes
from flanpy.kernel.netlink import Kernel, settled

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 36, 38, 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_CLSACT_HANDLE, _CLSACT, _INGRESS, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3

PRIORITY = 0xF1A0
"""Ours among the filters of a hook: behind all that others usually take, so that they see packets first."""
HANDLE = 1
PREFIX = "fp_"
"""Programs of ours, and no others, are called so."""
_INFO = PRIORITY << 16 | socket.htons(0x0003)  # ETH_P_ALL


class Spot(Protocol):
    """Where a program belongs (``datapath.ebpf_attach.Spot``)."""

    @property
    def program(self) -> str:
        """The program's name, which becomes the filter's."""

    @property
    def ifindex(self) -> int:
        """The interface."""

    @property
    def egress(self) -> bool:
        """What leaves it, not what comes in."""


class Program(Protocol):
    """A loaded program."""

    @property
    def number(self) -> int:
        """Its descriptor."""


class ClsactHooks:
    """Hooks by filters; they live with their device and need no pin."""

    name = "clsact"

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def attached(self, spot: Spot) -> int | None:
        """The kernel's id of the program in our filter, or None when there is no such filter."""
        for program, name, handle, info in self._filters_at(spot.ifindex, _parent(spot)):
            if handle == HANDLE and info == _INFO and name == spot.program:
                return program
        return None

    def look(self, spots: Iterable[Spot]) -> tuple[object, ...]:
        """Only our own filters: others of ours elsewhere are found by ``sweep``."""
        return tuple(self.attached(spot) for spot in spots)

    def sweep(self, keep: Iterable[Spot]) -> bool:
        """Remove every filter of ours, on whatever interface, but for these; whether there was any."""
        kept = {(spot.ifindex, _parent(spot), spot.program) for spot in keep}
        gone = [place for place in self._places() if place not in kept]
        for ifindex, parent, _ in gone:
            self._delete(ifindex, parent)
        return bool(gone)

    def _places(self) -> Iterator[tuple[int, int, str]]:
        """(interface, direction, program) of every filter of ours."""
        devices = settled("list the qdiscs", self._clsact_devices)
        for ifindex in devices:
            for parent in (_INGRESS, _EGRESS):
                for _, name, handle, info in self._filters_at(ifindex, parent):
                    if handle == HANDLE and info == _INFO and name.startswith(PREFIX):
                        yield ifindex, parent, name

    def _clsact_devices(self) -> list[int]:
        found = []
        for _, body in self._kernel.dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
            if attributes(body, _TCMSG.size).get(_KIND) == b"clsact\0":
                found.append(int(_TCMSG.unpack_from(body)[1]))
        return found

    def _filters_at(self, ifindex: int, parent: int) -> list[tuple[int, str, int, int]]:
        request = _TCMSG.pack(0, ifindex, 0, parent, 0)
        return settled("list the filters", lambda: self._filters(request))

    def _filters(self, request: bytes) -> list[tuple[int, str, int, int]]:
        found = []
        for kind, body in self._kernel.dump(RTM_GETTFILTER, request):
            _, _, handle, _, info = _TCMSG.unpack_from(body)
            options = attributes(memoryview(attributes(body, _TCMSG.size).get(_OPTIONS, b"")), 0)
            if kind == RTM_NEWTFILTER and _BPF_ID in options:
                name = options.get(_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
                found.append((int(struct.unpack("=I", options[_BPF_ID])[0]), name, handle, info))
        return found

    def attach(self, spot: Spot, program: Program) -> None:
        """Put the program into our filter, with qdisc and filter made if need be. Raises OSError."""
        qdisc = _TCMSG.pack(0, spot.ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")
        self._send(RTM_NEWQDISC, CREATE | EXCLUSIVE, qdisc, fine=errno.EEXIST)
        options = (
            attribute(_BPF_FD, struct.pack("=I", program.number))
            + attribute(_BPF_NAME, spot.program.encode() + b"\0")
            + attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        )
        body = (
            _TCMSG.pack(0, spot.ifindex, HANDLE, _parent(spot), _INFO) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
        )
        self._send(RTM_NEWTFILTER, CREATE | REPLACE, body)

    def detach(self, spot: Spot) -> None:
        """Remove our filter if it is there."""
        if self.attached(spot) is not None:
            self._delete(spot.ifindex, _parent(spot))

    def _delete(self, ifindex: int, parent: int) -> None:
        body = _TCMSG.pack(0, ifindex, HANDLE, parent, _INFO) + attribute(_KIND, b"bpf\0")
        self._send(RTM_DELTFILTER, 0, body, fine=errno.ENOENT)

    def _send(self, kind: int, flags: int, body: bytes, fine: int = 0) -> None:
        for code, text in self._kernel.execute([(kind, flags, body)]).values():
            if code != fine:
                raise OSError(code, text or errno.errorcode.get(code, str(code)))


def _parent(spot: Spot) -> int:
    return _EGRESS if spot.egress else _INGRESS
