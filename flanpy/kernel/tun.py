"""Opens the queues of a TUN device with the offloads that this kernel has; says what it has to do without.

    open /dev/net/tun -> TUNSETIFF (the name, exclusive) -> TUNSETVNETHDRSZ -> TUNSETOFFLOAD -> sysctls of the device -> probe

The device is left down and without MTU and address: that is the business of the links. It goes away with its last descriptor, which
is the agent's or its datapath process's: whoever starts anew adopts what the other still has.
Nothing here knows packets, except for the one that the probe writes to find out whether the kernel takes merged ones.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flanpy.errors import SHORTAGES, PlatformError, ResourceBusy, reason_of
from flanpy.kernel import ethtool

CLONE_DEVICE = "/dev/net/tun"

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNGETIFF = 0x800454D2
TUNGETDEVNETNS = 0x54E3
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
SIOCSIFTXQLEN = 0x8943
ETHTOOL_GDRVINFO = 3
ETHTOOL_DRVINFO_BYTES = 196

IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_PERSIST = 0x0800
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
"""Values of linux/if_tun.h; the USO pair came with Linux 6.2 and is missing in older headers."""

VIRTIO_NEEDS_CSUM = 1
VIRTIO_GSO_TCPV4 = 1
VNET_HDR_BYTES = 10
NAME_BYTES_MAX = 15
TX_QUEUE_LENGTH = 1000
"""Frames that may wait for a worker, per queue: twice the default, for bursts of small packets while a worker is elsewhere."""

OFFLOADS: tuple[tuple[frozenset[str], int], ...] = (
    (frozenset({"csum", "tso", "uso"}), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6),
    (frozenset({"csum", "tso"}), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN),
    (frozenset({"csum"}), TUN_F_CSUM),
    (frozenset(), 0),
)
"""What is asked for, best first: the kernel takes a set whole or says EINVAL."""

SYSCTLS = (("ipv4/conf/{}/accept_local", "1"), ("ipv6/conf/{}/addr_gen_mode", "1"))
"""Settings of the device. accept_local: our ICMP errors enter through it with its own address as their source, which Linux takes
for a martian otherwise. addr_gen_mode 1: no link-local address, hence no router solicitations into the overlay."""


@dataclass(frozen=True, slots=True)
class Tun:
    """An open TUN device; ``features`` are of ``csum``, ``tso``, ``uso``, ``coalesce``; ``degraded`` says what is missing and why."""

    name: str
    files: tuple[io.FileIO, ...]
    features: frozenset[str]
    degraded: tuple[str, ...]

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptor of each queue, non-blocking."""
        return tuple(file.fileno() for file in self.files)

    def close(self) -> None:
        """Close all queues; with the last one the kernel removes the device. Safe to call twice."""
        for file in self.files:
            file.close()


def open_tun(name: str, queues: int = 1, *, keep: bool = False) -> Tun:
    """Create the device ``name`` with so many queues, down and without address.

    With ``keep`` it outlives its descriptors, and one that was kept before is taken over as it stands.

    Raises ResourceBusy when the name is taken, PlatformError when the machine does not let us have a TUN device.
    """
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX or "/" in name or name in {".", ".."} or any(c.isspace() for c in name):
        raise PlatformError(f"TUN device {name!r}: not a device name (1 to {NAME_BYTES_MAX} bytes, no slash, no space)")
    files: list[io.FileIO] = []
    existed = keep and name in {there for _, there in socket.if_nameindex()}
    try:
        for number in range(queues):
            files.append(_open_clone())
            _attach(files[-1].fileno(), name, exclusive=number == 0 and not keep)
        if keep:
            _keep(files[0].fileno(), name, existed=existed)
        features = _enable_offloads([file.fileno() for file in files])
        degraded = _without(name, features) + _configure(name)
        own = partial(takes_merged_packets, files[0].fileno())
        merged, said = _merging(name, features, _scratch_takes_merged_packets if existed else own)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Tun(name=name, files=tuple(files), features=features | merged, degraded=degraded + said)


def adopt_tun(name: str, descriptors: Sequence[int], queues: int, *, keep: bool = False) -> Tun | None:
    """The device that somebody else has opened as ``open_tun`` does, by copies of its descriptors; packets that wait in it are kept.

    None when they are not so many queues of a device of this name in this network namespace any more.
    """
    if len(descriptors) != queues or not all(_is_queue(descriptor, name) for descriptor in descriptors):
        return None
    files: list[io.FileIO] = []
    try:
        for descriptor in descriptors:
            files.append(io.FileIO(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0), "r+b", closefd=True))
        fcntl.ioctl(files[0].fileno(), TUNSETPERSIST, int(keep))
        features = _enable_offloads([file.fileno() for file in files])
        degraded = _without(name, features) + _configure(name)
        merged, said = _merging(name, features, _scratch_takes_merged_packets)
    except BaseException:
        for file in files:
            file.close()
        raise
    return Tun(name=name, files=tuple(files), features=features | merged, degraded=degraded + said)


def _is_queue(descriptor: int, name: str) -> bool:
    """Whether this is a queue, as we open them, of the device of this name in the network namespace that we are in."""
    request = bytearray(40)
    try:
        fcntl.ioctl(descriptor, TUNGETIFF, request)
        there, flags = struct.unpack_from("16sH", request)
        with os.fdopen(fcntl.ioctl(descriptor, TUNGETDEVNETNS)) as namespace:
            here = os.fstat(namespace.fileno()).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    except OSError:  # EBADFD: the device has been deleted
        return False
    wanted = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
    return bool(here) and there.rstrip(b"\0") == name.encode() and flags & wanted == wanted


def _merging(name: str, features: frozenset[str], probe: Callable[[], bool]) -> tuple[frozenset[str], tuple[str, ...]]:
    """``coalesce`` if this kernel takes merged packets, or what is said when it does not."""
    if "tso" not in features:
        return frozenset(), ()
    if probe():
        return frozenset({"coalesce"}), ()
    return frozenset(), (f"{name}: this kernel refuses merged packets ({os.uname().release}); each is written by itself",)


def _open_clone() -> io.FileIO:
    try:
        descriptor = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise PlatformError(
            f"{CLONE_DEVICE} is not there: load the module with `modprobe tun` (CONFIG_TUN), or in a container pass the device in"
        ) from exc
    except PermissionError as exc:
        raise PlatformError(f"{CLONE_DEVICE}: permission denied; run as root or give this user access to the device") from exc
    except OSError as exc:
        cure = "" if exc.errno in SHORTAGES else "; the kernel needs CONFIG_TUN (`modprobe tun`)"
        raise PlatformError(f"{reason_of(exc)}{cure}") from exc
    return io.FileIO(descriptor, "r+b", closefd=True)


def _attach(descriptor: int, name: str, *, exclusive: bool) -> None:
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE | (IFF_TUN_EXCL if exclusive else 0)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_BYTES))
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise PlatformError(f"TUN device {name}: not permitted; run as root or with CAP_NET_ADMIN") from exc
        if exc.errno in (errno.EBUSY, errno.EEXIST):
            raise ResourceBusy(_taken(name)) from exc
        hint = " (multi-queue TUN needs Linux 3.8)" if exc.errno == errno.EINVAL else ""
        raise PlatformError(f"TUN device {name}: {reason_of(exc)}{hint}") from exc


def _keep(descriptor: int, name: str, *, existed: bool) -> None:
    """Let the device outlive us. One that was there and was not kept has a living holder: hands off."""
    request = bytearray(40)
    fcntl.ioctl(descriptor, TUNGETIFF, request)
    (flags,) = struct.unpack_from("H", request, 16)
    if existed and not flags & IFF_PERSIST:
        raise ResourceBusy(_taken(name))
    fcntl.ioctl(descriptor, TUNSETPERSIST, 1)


def _scratch_takes_merged_packets() -> bool:
    """The same probe on a device of its own, for one that may be up already."""
    with _open_clone() as scratch:
        _attach(scratch.fileno(), "", exclusive=False)
        _enable_offloads([scratch.fileno()])
        return takes_merged_packets(scratch.fileno())


def _taken(name: str) -> str:
    """Who has the name, as far as the kernel tells: a TUN device has a holder, another one an owner to ask."""
    driver = _driver(name)
    if driver == "tun":
        return f"TUN device {name} exists already: stop the agent or flanneld that holds it, or remove it with `ip link delete {name}`"
    kind = f"of driver {driver}" if driver else "of another kind"
    return f"device {name} exists already and is no TUN device but one {kind}: rename or remove it, or choose another device name"


def _driver(name: str) -> str | None:
    """The driver of a network device of this namespace (ethtool's drvinfo), or None."""
    try:
        info = ethtool.ask(name, struct.pack("=I", ETHTOOL_GDRVINFO).ljust(ETHTOOL_DRVINFO_BYTES, b"\0"))
    except OSError:
        return None
    return info[4:36].split(b"\0", 1)[0].decode("ascii", "replace") or None


def _enable_offloads(descriptors: list[int]) -> frozenset[str]:
    """Turn on the best set that the kernel takes. The device has one set for all queues."""
    for features, bits in OFFLOADS:
        try:
            fcntl.ioctl(descriptors[0], TUNSETOFFLOAD, bits)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise PlatformError(f"TUN offloads {sorted(features)}: {exc.strerror}") from exc
        else:
            return features
    raise PlatformError("TUN offloads: this kernel refuses to set any, even none (TUNSETOFFLOAD)")


def _without(name: str, features: frozenset[str]) -> tuple[str, ...]:
    """What is said about offloads that this kernel lacks."""
    if "tso" not in features:
        return (f"{name}: no TCP superpackets on TUN here (TUNSETOFFLOAD refuses TSO); every packet costs a system call",)
    if "uso" not in features:
        return (f"{name}: no UDP superpackets on TUN here (TUNSETOFFLOAD takes USO from Linux 6.2 on); TCP is not concerned",)
    return ()


def _configure(name: str) -> tuple[str, ...]:
    """Set the queue length and the sysctls of the device; what cannot be set is said, and the device works without."""
    said = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, SIOCSIFTXQLEN, struct.pack("16si20x", name.encode(), TX_QUEUE_LENGTH))
        except OSError as exc:
            said.append(f"{name}: queue length stays at the kernel's default ({exc.strerror})")
    for pattern, value in SYSCTLS:
        path = Path("/proc/sys/net") / pattern.format(name)
        try:
            path.write_text(value, encoding="ascii")
        except FileNotFoundError:
            if pattern.startswith("ipv4"):
                said.append(f"{path}: not there (is /proc mounted?); senders on this node may not get our ICMP errors")
        except OSError as exc:
            said.append(f"{path}: cannot be set to {value} ({exc.strerror}); senders on this node may not get our ICMP errors")
    return tuple(said)


def takes_merged_packets(descriptor: int) -> bool:
    """Whether a merged TCP packet passes the kernel's checks (those of 6.1.103, 6.6.44 and 6.10.3 refuse good ones).

    The device must be down still: a packet that passes then meets EIO behind the checks and goes nowhere; a refused one meets EINVAL.
    Two segments of 100 bytes: their total is no multiple of the segment size, which is what the broken kernels trip over.
    """
    segment_bytes, segments, headers = 100, 2, 40
    total = headers + segment_bytes * segments
    virtio = struct.pack("=BBHHHH", VIRTIO_NEEDS_CSUM, VIRTIO_GSO_TCPV4, headers, segment_bytes, 20, 16)
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, total, 1, 0x4000, 64, socket.IPPROTO_TCP, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    )
    tcp = struct.pack(">HHIIBBHHH", 1, 1, 1, 1, 0x50, 0x10, 64, 0, 0)
    try:
        os.write(descriptor, virtio + ip + tcp + bytes(segment_bytes * segments))
    except OSError as exc:
        return exc.errno != errno.EINVAL
    return True
