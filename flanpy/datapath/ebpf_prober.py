"""While bulk traffic flows: tells each peer what our receiver takes best, and finds out whether superpackets arrive whole.

A probe is TCP from port 0 to port 0, which the peer's BPF programs note and swallow; what it tells stands in its outer header, which
our programs write, and every packet back tells us; over an IPv6 underlay every probe back, so there small ones go to each peer whose
superpackets have arrived. Full-size ones, a superpacket of 64 KB, go only over an underlay that may carry
them; the kernel may cut one like any other packet, so it does no harm where it does not arrive whole, and a peer that keeps silent is
asked less and less often. Small ones say that our interface merges trains. Where no bulk traffic flows nothing is sent at all.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_layout import peer_key
from flanpy.model import Address, ForwardTable

PERIOD_S = 0.2
"""A note of the programs holds for 0.6 s (FP_NOTE_TICKS); a probe may be lost."""
REST_PERIOD_S = 0.5
"""While no bulk traffic flows: to see that it has begun, or that the uplink has changed."""
SILENT_PERIOD_S = 16.0
ACTIVE_S = 10.0
"""So long after bulk traffic, in or out, probes go on."""
BULK_PACKETS = 16
"""Counted in one turn: small connections move those counters too. At rest 32 packets, or superpackets, a second; to go on, 80."""
PROBES_A_TURN = 20
"""64 KB each: 6.5 MB/s at most, by copying; as many small ones. In larger clusters flows show by themselves what their path carries."""

_SLOTS, _TICK_SHIFT, _TICKS = 4096, 27, 4
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_NEEDS_CSUM, _GSO_TCPV4, _GSO_TCPV6 = 1, 1, 4
_IP_BYTES, _TCP_BYTES = {4: 20, 6: 40}, 20
_TOTAL_BYTES = 65460
"""With all headers still below 65,536 bytes, from where on the kernel cuts for any device."""
_RST = 0x04


@dataclass(frozen=True, slots=True)
class Target:
    """A peer, by the key of its notes, and an address in its subnet."""

    peer: int
    inner: Address


def targets_of(table: ForwardTable, versions: tuple[int, ...]) -> tuple[Target, ...]:
    """The peers that run these programs too; of several subnets the one of the family that ``versions`` names first."""
    inner: dict[int, Address] = {}
    for version in reversed(versions):
        for entry in reversed(table.entries):
            if entry.hop.superpacket and entry.prefix.version == version:
                inner[peer_key(entry.hop.address)] = entry.prefix.network_address
    return tuple(Target(peer, address) for peer, address in inner.items())


@dataclass(frozen=True, slots=True)
class Notes:
    """The maps of what superpackets have come whole from peers, and of what peers say of ours."""

    wholes: bpf.Fd
    thanks: bpf.Fd


@dataclass(frozen=True, slots=True)
class Watch:
    """What the prober asks at every turn: for a number that grows while bulk traffic flows, and to look at the uplink."""

    bulk: Callable[[], int]
    uplink: Callable[[], None]


@dataclass(slots=True)
class _Wait:
    due_s: float = 0.0
    period_s: float = PERIOD_S / 8


class SuperpacketProber:
    """The thread that probes. Belongs to the network namespace of the thread that makes it."""

    def __init__(self, device: str, sources: tuple[Address, ...], notes: Notes, watch: Watch, *, only_probes_tell: bool) -> None:
        self._watch = watch
        self._bulk = 0
        self._active_until_s = 0.0
        self._sources = {source.version: source for source in sources}
        self._mtu_bytes = 0
        self._notes = notes
        self._only_probes_tell = only_probes_tell
        self._targets: tuple[Target, ...] = ()
        self._whole = False
        self.trains = False
        self._told = 0
        self._waits: dict[Target, _Wait] = {}
        self._runs = threading.Lock()
        """Held until the end: to wait for it is one call, where an Event takes dozens of steps."""
        self._runs.acquire()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            self._socket.bind((device, 0))
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._run, name="flanpy-prober", daemon=True)
        self._thread.start()

    def aim(self, targets: tuple[Target, ...], mtu_bytes: int, *, whole: bool) -> None:
        """Probe these from now on, with superpackets of packets of that size if ``whole``."""
        self._mtu_bytes = mtu_bytes
        self._targets, self._whole = targets, whole

    def close(self) -> None:
        """End the thread; called once."""
        self._runs.release()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        """Waits first: a peer that starts together with us should have its programs in place.

        The uplink is looked at in every turn (an ioctl, 10 us): what no longer goes whole must not wait for traffic to be noticed.
        Probes go only while bulk traffic flows.
        """
        while not self._runs.acquire(timeout=PERIOD_S if time.monotonic() < self._active_until_s else REST_PERIOD_S):
            bulk, now_s = self._watch.bulk(), time.monotonic()
            if bulk - self._bulk >= BULK_PACKETS:
                self._active_until_s = now_s + ACTIVE_S
            self._bulk = bulk
            self._watch.uplink()
            if now_s < self._active_until_s:
                self._turn(now_s)

    def _turn(self, now_s: float) -> None:
        targets = self._targets
        self._waits = {target: self._waits.get(target) or _Wait() for target in targets}
        due = sorted(
            (target for target in targets if self._waits[target].due_s <= now_s), key=lambda each: self._waits[each].due_s
        )
        full = due[:PROBES_A_TURN] if self._whole else ()
        for target in full:
            wait = self._waits[target]
            wait.period_s = PERIOD_S if _is_noted(self._notes.thanks, target) else min(2 * wait.period_s, SILENT_PERIOD_S)
            wait.due_s = now_s + wait.period_s - PERIOD_S / 2
            if not self._send(target, _TOTAL_BYTES):
                self._waits[target] = _Wait()
        small = set(self._round(targets)) if self.trains else set()
        if self._only_probes_tell:
            small.update(target for target in targets if target not in full and _is_noted(self._notes.wholes, target))
        for target in small:
            self._send(target, 0)

    def _round(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        """The next ones of all peers: most learn from the packets back to them that our interface merges."""
        begin = self._told % len(targets) if targets else 0
        self._told = begin + PROBES_A_TURN
        return (targets[begin:] + targets[:begin])[:PROBES_A_TURN]

    def _send(self, target: Target, total_bytes: int) -> bool:
        """At least the headers. False: the device is down, or its queue full; the next turn tries again."""
        try:
            self._socket.send(probe_frame(self._sources[target.inner.version], target.inner, self._mtu_bytes, total_bytes))
        except OSError:
            return False
        return True


def _is_noted(notes: bpf.Fd, target: Target) -> bool:
    """As fp_note_units reads it."""
    (note,) = struct.unpack("=Q", bpf.lookup(notes, _slot(target.peer), 8))
    age = ((time.monotonic_ns() >> _TICK_SHIFT) - (note >> 7)) & 0x1FFFFFF
    return note >> 32 == target.peer and bool(note & 0x7F) and age <= _TICKS


def forget(notes: Iterable[bpf.Fd], table: ForwardTable) -> None:
    """Take back what these maps say of superpackets from or to the peers: the path is another, and the next packets will show it."""
    for peer in {peer_key(entry.hop.address) for entry in table.entries if entry.hop.superpacket}:
        for note in notes:
            bpf.update(note, _slot(peer), bytes(8))


def _slot(peer: int) -> int:
    """As fp_note has it."""
    return (peer ^ peer >> 12 ^ peer >> 24) % _SLOTS


def probe_frame(source: Address, destination: Address, mtu_bytes: int, total_bytes: int) -> bytes:
    """A virtio_net_hdr and TCP from port 0 to port 0 with RST, which a receiver without these programs ignores.

    The packet is a superpacket for ``mtu_bytes`` where it is larger, and has no payload where ``total_bytes`` leaves none."""
    six = source.version == 6
    ip_bytes = _IP_BYTES[source.version]
    headers = ip_bytes + _TCP_BYTES
    tcp_bytes = max(total_bytes, headers) - ip_bytes
    large = ip_bytes + tcp_bytes > mtu_bytes
    gso = (_GSO_TCPV6 if six else _GSO_TCPV4, headers, mtu_bytes - headers) if large else (0, 0, 0)
    virtio = struct.pack("=BBHHHH", _NEEDS_CSUM, *gso, ip_bytes, 16)
    ends = source.packed + destination.packed
    ip = _ip6(tcp_bytes, ends) if six else _ip4(tcp_bytes, ends)
    pseudo = _sum(ends + struct.pack("!HH", socket.IPPROTO_TCP, tcp_bytes))
    tcp = struct.pack("!HHIIBBHHH", 0, 0, 0, 0, 0x50, _RST, 0, pseudo, 0)
    return virtio + ip + tcp + bytes(tcp_bytes - _TCP_BYTES)


def _ip4(payload_bytes: int, ends: bytes) -> bytes:
    fields = (0x45, 0, 20 + payload_bytes, 0, 0x4000, 8, socket.IPPROTO_TCP)
    check = ~_sum(struct.pack("!BBHHHBBH", *fields, 0) + ends) & 0xFFFF
    return struct.pack("!BBHHHBBH", *fields, check) + ends


def _ip6(payload_bytes: int, ends: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, payload_bytes, socket.IPPROTO_TCP, 8) + ends


def _sum(data: bytes) -> int:
    """Ones' complement sum (RFC 1071) of 16-bit words."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    folded: int = (total & 0xFFFF) + (total >> 16)
    return folded
