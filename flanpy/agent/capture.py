"""Captures inner and outer packets at the overlay's devices, by AF_PACKET sockets of the operator's process: the agent is only asked
where to look, and while nobody captures nothing is different.

    flannel0 (flannel.1, …)   inner packets          underlay interface   outer packets of the backend, picked out in the kernel

The kernel hands us copies (packet(7)); a full queue costs records, never packets, and how many is told. With the ebpf datapath packets
that go out are taken from the device before it could be seen there: their inner packet is shown inside the outer one.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanpy.agent.inquiry import Inquiry, inquire
from flanpy.core.captured import INBOUND, OUTBOUND, Filter, Packet, Tunnel, parse, wanted
from flanpy.core.time_order import TimeOrder
from flanpy.errors import PlatformError, UsageError
from flanpy.model import Address

SNAP_BYTES = 262144
"""More than any packet of the kernel."""
BUFFER_BYTES = 8 << 20
"""Of each socket, and of packets that wait for earlier ones."""
WINDOW_NS = 20_000_000
"""A packet is in our socket's queue that long after its time stamp at most."""
KERNEL_VXLAN_PORT = 8472
TUNNELS = ("udp", "vxlan", "ipip", "wireguard")
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_PACKET_OUTGOING, _PACKET_OTHERHOST = 4, 3
_IPV4, _IPV6 = 0x0800, 0x86DD


@dataclass(frozen=True, slots=True)
class Place:
    """A device to look at; ``outer`` where it carries the backend's packets."""

    device: str
    outer: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to look, what the backend's packets look like, and what the operator wants of them."""

    places: tuple[Place, ...]
    tunnel: Tunnel
    choice: Filter


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet: the number of its place, when (ns since 1970), which way, its bytes as kept, how many it had, and what it is."""

    place: int
    time_ns: int
    direction: int
    data: bytes
    original_bytes: int
    packet: Packet | None


def plan(run_dir: Path, peer: str | None, pod: str | None, side: str) -> Plan:
    """Ask the agent where to look. Raises AgentAbsent, UsageError for a peer or pod that is not known."""
    found = inquire(run_dir)
    tunnel, uplink = _tunnel(found.status), found.carrier.uplink
    address = None if pod is None else found.find(pod).address
    if tunnel.backend not in TUNNELS:  # packets of pods travel as they are
        if peer is not None or side == "outer":
            raise UsageError(f"backend {tunnel.backend} wraps packets in nothing: there are no outer ones; use --pod")
        return Plan((Place(uplink, False),), tunnel, Filter(None, address, found.cluster.networks))
    inner = [Place(device, False) for device in found.status["devices"]]
    places = [*(inner if side != "outer" else []), *([Place(uplink, True)] if side != "inner" else [])]
    return Plan(tuple(places), tunnel, Filter(_peer(found, peer), address))


def _tunnel(status: dict[str, Any]) -> Tunnel:
    port = int(status["port"] or 0)
    return Tunnel(status["backend"], port or (KERNEL_VXLAN_PORT if status["backend"] == "vxlan" else 0))


def _peer(found: Inquiry, text: str | None) -> Address | None:
    """The underlay address of a peer, by any of its names."""
    if text is None:
        return None
    target = found.find(text)
    if target.node is None:
        raise UsageError(f"--peer {text}: no node has this address")
    return target.node.public_ip


class Capture:
    """Open sockets on all places; a context manager. Raises PlatformError."""

    def __init__(self, plan: Plan, snap_bytes: int = SNAP_BYTES) -> None:
        self._plan = plan
        self._snap_bytes = snap_bytes
        self._sockets: list[socket.socket] = []
        self._lost = 0
        try:
            for place in plan.places:
                self._sockets.append(_open(place, plan.tunnel))
        except OSError as error:
            self.close()
            if isinstance(error, PermissionError):
                raise PlatformError("capture: needs root or CAP_NET_RAW") from error
            raise PlatformError(f"capture: {plan.places[len(self._sockets)].device}: {error.strerror or error}") from error

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the capture; safe to call twice."""
        for each in self._sockets:
            self._lost += _statistics(each)
            each.close()
        self._sockets = []

    @property
    def lost(self) -> int:
        """Records that the kernel had no room for, known once it is closed."""
        return self._lost

    def packets(self, until_s: float | None) -> Iterator[Captured]:
        """What comes by and is wanted, by its time, until this moment (time.monotonic()) or Ctrl-C; None: for ever."""
        order: TimeOrder[Captured] = TimeOrder(len(self._sockets), WINDOW_NS, BUFFER_BYTES)
        with contextlib.suppress(KeyboardInterrupt):
            while (left_s := None if until_s is None else until_s - time.monotonic()) is None or left_s > 0:
                self._look(order, min(WINDOW_NS / 1e9, left_s or 1) if order else left_s)
                yield from order.due()
        yield from order.rest()

    def _look(self, order: TimeOrder[Captured], within_s: float | None) -> None:
        """Take one packet of each socket that has some, or wait for one."""
        begun_ns = time.time_ns()
        ready = select.select(self._sockets, [], [], within_s)[0]
        for number, each in enumerate(self._sockets):
            time_ns, captured = self._take(each, number) if each in ready else (begun_ns, None)
            order.reached(number, time_ns)
            if captured is not None:
                after = self._plan.places[number].outer == (captured.direction == OUTBOUND)
                order.add(time_ns, int(after), len(captured.data), captured)

    def _take(self, each: socket.socket, number: int) -> tuple[int, Captured | None]:
        """A packet's time, and the packet if it is wanted."""
        place = self._plan.places[number]
        try:
            data, ancillary, flags, address = each.recvmsg(self._snap_bytes, 64, socket.MSG_DONTWAIT)
        except OSError:  # the device went away, or another reader was quicker
            return 0, None
        time_ns, protocol, kind = _time_ns(ancillary), address[1], address[2]
        if protocol not in (_IPV4, _IPV6) or kind == _PACKET_OTHERHOST:
            return time_ns, None
        packet = parse(data)
        if packet is None or not wanted(packet, self._plan.tunnel, self._plan.choice, outer=place.outer):
            return time_ns, None
        direction = OUTBOUND if kind == _PACKET_OUTGOING else INBOUND
        original = packet.total_bytes if flags & socket.MSG_TRUNC else len(data)
        return time_ns, Captured(number, time_ns, direction, data, max(original, len(data)), packet)


def _time_ns(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) >= 16:
            seconds, nanoseconds = struct.unpack("=qq", data[:16])
            return int(seconds * 10**9 + nanoseconds)
    return time.time_ns()


def _statistics(each: socket.socket) -> int:
    with contextlib.suppress(OSError):
        return int(struct.unpack("=II", each.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])
    return 0


# ------------------------------------------------------------------------------------------------ sockets


def _open(place: Place, tunnel: Tunnel) -> socket.socket:
    """A socket that delivers from the IP header on (SOCK_DGRAM), filtered in the kernel where the place carries other traffic too."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)  # protocol 0: nothing before bind
    try:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        found.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if place.outer and (program := outer_filter(tunnel)):
            _attach(found, program)
        found.bind((place.device, _ETH_P_ALL))
    except OSError:
        found.close()
        raise
    return found


Instruction = tuple[int, int, int, int]
_LDB, _LDH, _LDXB_MSH, _LDH_X, _AND, _JEQ, _JSET, _RET = 0x30, 0x28, 0xB1, 0x48, 0x54, 0x15, 0x45, 0x06


def outer_filter(tunnel: Tunnel) -> tuple[Instruction, ...]:
    """A classic BPF program (linux/filter.h) that keeps the backend's packets; empty: all are kept (host-gw has none of its own).

    First fragments and whole packets are told by their UDP ports; later fragments are kept, for they may belong to one.
    """
    if tunnel.backend == "ipip":
        return ((_LDB, 0, 0, 0), (_AND, 0, 0, 0xF0), (_JEQ, 0, 3, 0x40), (_LDB, 0, 0, 9), (_JEQ, 0, 1, 4), _KEEP, _DROP)
    if tunnel.backend not in ("udp", "vxlan", "wireguard") or not tunnel.port:
        return ()
    port = tunnel.port
    return (
        (_LDB, 0, 0, 0),
        (_AND, 0, 0, 0xF0),
        (_JEQ, 0, 9, 0x40),  # IPv4, else to 12
        (_LDB, 0, 0, 9),
        (_JEQ, 0, 15, 17),  # UDP, else drop
        (_LDH, 0, 0, 6),
        (_JSET, 12, 0, 0x1FFF),  # a later fragment: keep
        (_LDXB_MSH, 0, 0, 0),  # X = header length
        (_LDH_X, 0, 0, 0),
        (_JEQ, 9, 0, port),
        (_LDH_X, 0, 0, 2),
        (_JEQ, 7, 8, port),
        (_JEQ, 0, 7, 0x60),  # 12: IPv6, else drop
        (_LDB, 0, 0, 6),
        (_JEQ, 0, 5, 17),
        (_LDH, 0, 0, 40),
        (_JEQ, 2, 0, port),
        (_LDH, 0, 0, 42),
        (_JEQ, 0, 1, port),
        _KEEP,
        _DROP,
    )


_KEEP: Instruction = (_RET, 0, 0, 0x40000)
_DROP: Instruction = (_RET, 0, 0, 0)


def _attach(found: socket.socket, program: Sequence[Instruction]) -> None:
    """struct sock_fprog: the number of instructions, and where they are."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
