"""Opens the UDP sockets of the underlay with the offloads that this kernel has; says what it has to do without.

Several sockets, all bound to the same address and port. Nothing here sends or receives, but for a probe on loopback.

Lanes: each worker has some of the sockets. A classic BPF program, which needs no privilege, lets the kernel choose the socket of a
packet by its outer source address modulo their number, so each peer's packets wait in one queue, in order, and a peer that sends more
than the node can take fills that queue alone. 31 is a prime: nodes with addresses next to each other, or in racks of equal size, get
lanes of their own as far as there are lanes. The first socket is bound before it may be shared, so the port is ours or nobody's.

Path MTU: IP_PMTUDISC_WANT, said explicitly so that the sysctl ip_no_pmtu_disc cannot turn it off. The outer packets carry DF and the
kernel learns from ICMP when the path is narrower; a UDP_SEGMENT send that no longer fits then fails with EMSGSIZE, which is how the
worker learns of it and tells the inner senders; meanwhile single datagrams are fragmented instead of lost, and flannel's receivers put
them together. DO would lose those, PROBE would never hear of a narrower path, and without DF a router would fragment in silence for ever.
Over IPv6, IPV6_PMTUDISC_WANT is the same; there no router fragments anyway.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flanpy.errors import InterfaceError, PlatformError, ResourceBusy, reason_of
from flanpy.model import Address

UDP_SEGMENT = 103
UDP_GRO = 104
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
UDP_NO_CHECK6_RX = 102
"""Take packets without a UDP checksum (RFC 6935): BPF programs send them so, and may leave one to us. We always fill it."""
IP_PMTUDISC_WANT = 1
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

SO_ATTACH_REUSEPORT_CBPF = 51
BUFFER_BYTES = 16 << 20
"""Asked for each direction of one lane: some 15 ms of 10 Gbit/s. The kernel doubles it for its own overhead."""
BUFFERS_BYTES = 128 << 20
"""And for the receiving side of all lanes together, which bounds the kernel's memory that floods can fill ..."""
BUFFERS_SHARE = 32
"""... or this part of the machine's memory, if that is less: doubled it is a third of what the kernel grants UDP as a whole
(udp_mem, about 18 %), so floods in all lanes leave this host its name service."""
BUFFER_BYTES_ENOUGH = 4 << 20
SOCKETS = 31
"""Of one underlay, unless there are more queues."""
_NETWORK_HEADER = 0x100000000 - 0x100000
"""SKF_NET_OFF: where a load reckons from the outer IP header."""
SEGMENTS_NEW, SEGMENTS_OLD = 127, 63
"""Datagrams of one UDP_SEGMENT send from Linux 6.9 on, and before."""


@dataclass(frozen=True, slots=True)
class UnderlaySockets:
    """Open sockets, those of a queue being ``sockets[queue::queues]``, of which the first one sends too.

    ``max_segments`` 1 means no UDP_SEGMENT; ``degraded`` says what is missing and why.
    """

    sockets: tuple[socket.socket, ...]
    max_segments: int
    gro: bool
    degraded: tuple[str, ...]

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor of each socket, non-blocking."""
        return tuple(each.fileno() for each in self.sockets)

    def lanes(self, queues: int) -> tuple[tuple[int, ...], ...]:
        """The descriptors of each queue."""
        return tuple(self.fds[queue::queues] for queue in range(queues))

    def spread(self) -> None:
        """Let all sockets get packets: whoever reads them reads all of them from now on."""
        _spread(self.sockets, len(self.sockets))

    def close(self) -> None:
        """Close all sockets; safe to call twice."""
        for each in self.sockets:
            each.close()


def sockets_of(queues: int) -> int:
    """How many sockets so many queues have: as many lanes each as there are sockets for."""
    return max(SOCKETS // queues, 1) * queues


def receive_buffers_bytes() -> int:
    """What the receiving sides of all lanes may ask for together."""
    return min(BUFFERS_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // BUFFERS_SHARE)


def open_underlay(address: Address, port: int, queues: int = 1, *, buffer_bytes: int = BUFFER_BYTES) -> UnderlaySockets:
    """Bind the sockets of so many queues to ``address`` and ``port``; they are of its family alone.

    Raises ResourceBusy (the port is taken; says by whom), InterfaceError (the address is not ours), PlatformError.
    """
    sockets: list[socket.socket] = []
    try:
        sockets.append(_open(address))
        _bind(sockets[0], address, port, shared=False)
        _complete(sockets, address, port, queues)
        return _prepared(sockets, buffer_bytes, len(sockets))
    except BaseException:
        for each in sockets:
            each.close()
        raise


def adopt_underlay(descriptors: Sequence[int], address: Address, port: int, queues: int = 1) -> UnderlaySockets | None:
    """The sockets that somebody else has opened as ``open_underlay`` does, by copies of their descriptors; what waits in them is kept.

    Those that are missing are opened: earlier builds had one for each queue. They get nothing before ``spread``, for somebody may still be
    reading those that are there and no others. None when they are not bound to ``address`` and ``port``, or belong to more queues. Raises
    as ``open_underlay`` does.
    """
    if not all(_is_udp(descriptor) for descriptor in descriptors):
        return None
    sockets: list[socket.socket] = []
    try:
        for descriptor in descriptors:
            sockets.append(socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)))
            _disconnect(sockets[-1])
        if 0 < len(sockets) <= sockets_of(queues) and all(each.getsockname()[:2] == (str(address), port) for each in sockets):
            _complete(sockets, address, port, queues)
            return _prepared(sockets, BUFFER_BYTES, len(descriptors))
    except BaseException:
        for each in sockets:
            each.close()
        raise
    for each in sockets:
        each.close()
    return None


def _is_udp(descriptor: int) -> bool:
    """Whether this is a UDP socket at all: whoever gives it may be anybody's by now."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)) as there:
        return there.family in (socket.AF_INET, socket.AF_INET6) and there.type == socket.SOCK_DGRAM


def _disconnect(underlay: socket.socket) -> None:
    """Nobody of ours connects it; one that is would hear of that peer alone (connect(2), AF_UNSPEC). Its address and port stay."""
    try:
        underlay.getpeername()
    except OSError:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = bytes(16)
    if libc.connect(underlay.fileno(), unspecified, len(unspecified)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _complete(sockets: list[socket.socket], address: Address, port: int, queues: int) -> None:
    """As many as the queues should have; they share the port from now on."""
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    there = len(sockets)
    while len(sockets) < sockets_of(queues):
        sockets.append(_open(address))
        _bind(sockets[-1], address, port, shared=True)
        if len(sockets) == there + 1:  # no sooner: one socket alone takes no program
            _spread(sockets, there)


def _prepared(sockets: list[socket.socket], buffer_bytes: int, lanes: int) -> UnderlaySockets:
    """Bound sockets with all options set; the same again for sockets that have them already."""
    receive_bytes = min(buffer_bytes, receive_buffers_bytes() // len(sockets))
    said = {line: None for each in sockets for line in _tune(each, receive_bytes, buffer_bytes)}
    said |= dict.fromkeys(_spread(sockets, lanes))
    gro = all(_has_gro(each) for each in sockets)
    max_segments = probe_segments()
    if not gro:
        said["UDP_GRO: not in this kernel (Linux 5.0 and newer have it); each datagram costs a system call"] = None
    if max_segments == 1:
        said["UDP_SEGMENT: not in this kernel (Linux 4.18 and newer have it); each datagram costs a system call"] = None
    return UnderlaySockets(tuple(sockets), max_segments, gro, tuple(said))


def _open(address: Address) -> socket.socket:
    """A socket of an address's family. Raises PlatformError where the kernel has no IPv6."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as exc:
        raise PlatformError(f"{address}: no UDP socket of IPv{address.version}: {reason_of(exc)}") from exc
    if address.version == 6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return opened


def check_port(address: Address, port: int) -> None:
    """That ``address`` and ``port`` can be bound now. Raises as ``open_underlay`` does."""
    with _open(address) as probe:
        _bind(probe, address, port, shared=False)


def _bind(underlay: socket.socket, address: Address, port: int, *, shared: bool) -> None:
    if shared:
        underlay.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        underlay.bind((str(address), port))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ResourceBusy(
                f"UDP port {port} on {address} is in use by {port_holder(port)}: stop it (two overlay daemons cannot share a port)"
            ) from exc
        if exc.errno == errno.EADDRNOTAVAIL:
            raise InterfaceError(f"{address}: not an address of this machine, so UDP port {port} cannot be bound on it") from exc
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise PlatformError(f"UDP port {port}: not permitted; ports below 1024 need CAP_NET_BIND_SERVICE") from exc
        raise PlatformError(f"UDP port {port} on {address}: {reason_of(exc)}") from exc


def _spread(sockets: Sequence[socket.socket], lanes: int) -> list[str]:
    """Let the sender's address choose one of the first ``lanes`` that were bound; returns what did not work."""
    program = lane_program(sockets[0].family, lanes)
    memory = ctypes.create_string_buffer(program, len(program))
    try:
        sockets[0].setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", len(program) // 8, ctypes.addressof(memory))
        )
    except OSError as exc:
        return [f"senders cannot be told apart ({exc.strerror}): one that floods this node takes the others' packets along"]
    return []


def lane_program(family: int, lanes: int) -> bytes:
    """Classic BPF: the packet's outer source address modulo ``lanes``, in the form of ``struct sock_filter`` one after the other.

    The words of an IPv6 address count 27, 9, 3 and 1 times, so that a difference in any one of them makes another lane.
    """
    load, triple, store, to_x, load_scratch, add, modulo, end = 0x20, 0x24, 0x02, 0x07, 0x60, 0x0C, 0x94, 0x16
    at = [12] if family == socket.AF_INET else [8, 12, 16, 20]
    steps = [(load, _NETWORK_HEADER + at[0])]
    for word in at[1:]:
        steps += [(triple, 3), (store, 0), (load, _NETWORK_HEADER + word), (to_x, 0), (load_scratch, 0), (add, 0)]
    steps += [(modulo, lanes), (end, 0)]
    return b"".join(struct.pack("@HBBI", code, 0, 0, operand) for code, operand in steps)


def _tune(underlay: socket.socket, receive_bytes: int, send_bytes: int) -> list[str]:
    """Options of every socket; returns what did not work as wanted."""
    if underlay.family == socket.AF_INET6:
        underlay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        underlay.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_WANT)
        underlay.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
    else:
        underlay.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        underlay.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT)
    said = []
    for force, plain, sysctl, buffer_bytes in (
        (SO_RCVBUFFORCE, socket.SO_RCVBUF, "net.core.rmem_max", receive_bytes),
        (SO_SNDBUFFORCE, socket.SO_SNDBUF, "net.core.wmem_max", send_bytes),
    ):
        try:
            underlay.setsockopt(socket.SOL_SOCKET, force, buffer_bytes)
        except PermissionError:
            underlay.setsockopt(socket.SOL_SOCKET, plain, buffer_bytes)
        granted = underlay.getsockopt(socket.SOL_SOCKET, plain) // 2
        if granted < min(buffer_bytes, BUFFER_BYTES_ENOUGH):
            said.append(
                f"socket buffer of {granted} bytes only, so bursts may be lost: raise {sysctl} to {buffer_bytes} or run as root"
            )
    return said


def _has_gro(underlay: socket.socket) -> bool:
    with suppress(OSError):
        underlay.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        return True
    return False


def probe_segments() -> int:
    """How many datagrams one send may be cut into: tried on loopback; where loopback is down, by the kernel's release."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
        except OSError:
            return 1
        try:
            probe.bind(("127.0.0.1", 0))
            segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, (1).to_bytes(2, "little" if _little_endian() else "big"))]
            probe.sendmsg([bytes(SEGMENTS_NEW)], segment, socket.MSG_DONTWAIT, probe.getsockname())
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return SEGMENTS_OLD
            return SEGMENTS_NEW if _release() >= (6, 9) else SEGMENTS_OLD
    return SEGMENTS_NEW


def _little_endian() -> bool:
    return socket.htons(1) != 1


def _release() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def port_holder(port: int) -> str:
    """Who has a UDP port of this namespace, for an error message: names and process ids as far as /proc shows them."""
    inodes: set[str] = set()
    for table in ("udp", "udp6"):
        inodes |= _inodes(Path("/proc/thread-self/net") / table, port)
    unseen = "the kernel or a process that cannot be seen from here"
    if left := sorted(_datapath_processes()):
        unseen += f" (perhaps {', '.join(left)}, if an agent with another --run-dir has left it)"
    return ", ".join(sorted(_holders(inodes))) or unseen


def _inodes(table: Path, port: int) -> set[str]:
    with suppress(FileNotFoundError):  # a kernel without IPv6
        lines = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
        return {f"socket:[{fields[9]}]" for fields in lines if int(fields[1].rpartition(":")[2], 16) == port}
    return set()


def _holders(inodes: set[str]) -> set[str]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end, or be somebody else's, while we look
            if any(_link(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                found.add(f"{(process / 'comm').read_text(encoding='utf-8').strip()} (pid {process.name})")
    return found


def _datapath_processes() -> set[str]:
    """Ours run as another user, so we do not see what they have open, and nobody finds one whose run directory has been emptied."""
    here, found = Path("/proc/thread-self/ns/net").readlink(), set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text(encoding="utf-8", errors="replace") != "flanpy-datapath\n":
                continue
            if _link(process / "ns/net") in ("", str(here)):
                found.add(f"flanpy-datapath (pid {process.name})")
    return found


def _link(descriptor: Path) -> str:
    with suppress(OSError):
        return str(descriptor.readlink())
    return ""
