"""Two hosts with a pod each, like tests/support/netns.py, where each host has the datapath that the test asks for.

pod a 10.5.1.2, fd00:5:1::2                                       pod b 10.5.2.2, fd00:5:2::2
   | veth, gateway 10.5.1.1                               veth, gateway 10.5.2.1 |      with bridge=True: behind cni0
host a  flannel0 10.5.1.0/32  <- datapath ->                 flannel0 10.5.2.0/32  host b
   | uplink 172.31.0.1/24 ---------------- veth, MTU 1500 or more --- 172.31.0.2/24 |      with vlan=True: VLAN 7 on it
                                                                                           with outer=6: fd31::1/64 and fd31::2/64

Pins go into a directory of the test's own in bpffs, which is removed with everything else when the block ends.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from flanpy.datapath import Datapath, DatapathSettings, DatapathStats
from flanpy.datapath.ebpf import EbpfDatapath, EbpfOptions
from flanpy.datapath.ebpf_layout import OUTER_BYTES
from flanpy.datapath.ebpf_pins import BPFFS, mount_bpffs
from flanpy.datapath.sockets import SO_RCVBUFFORCE, open_underlay
from flanpy.datapath.userspace import UserspaceDatapath
from flanpy.kernel.bpf_host import BpfHost
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.tun import open_tun
from flanpy.model import Address, ForwardTable, Hop, TableEntry
from tests.support.namespaces import Namespace, inside, namespace
from tests.support.polling import eventually

PORT = 8285


@contextmanager
def pin_root() -> Iterator[Path]:
    """A directory in bpffs that nobody else uses; gone afterwards with all in it."""
    mount_bpffs(BPFFS)
    for left in BPFFS.glob("flanpy-test-*-*"):  # by a run that was killed: bpffs outlives it
        if not Path("/proc", left.name.split("-")[2]).exists():
            _remove(left)
    root = BPFFS / f"flanpy-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    root.mkdir()
    try:
        yield root
    finally:
        _remove(root)


def _remove(root: Path) -> None:
    """Twice at the same time does no harm."""
    with suppress(FileNotFoundError):
        for directory in root.iterdir():
            for name in directory.iterdir():
                name.unlink(missing_ok=True)
            directory.rmdir()
        root.rmdir()


@dataclass(slots=True)
class EbpfSide:
    """One host: its namespaces, addresses and datapath, which a test may take away and open anew."""

    number: int
    host: Namespace
    pod: Namespace
    kind: str
    settings: DatapathSettings
    options: EbpfOptions
    mtu_bytes: int
    datapath: Datapath | None = None
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(f"10.5.{self.number}.0/24")

    @property
    def subnet6(self) -> IPv6Network:
        return IPv6Network(f"fd00:5:{self.number}::/64")

    @property
    def pod_address6(self) -> IPv6Address:
        return self.subnet6[2]

    @property
    def pod_address(self) -> IPv4Address:
        return self.subnet[2]

    @property
    def tunnel_address(self) -> IPv4Address:
        return self.subnet[0]

    @property
    def underlay_address(self) -> Address:
        return self.settings.underlay_address

    @property
    def hop(self) -> Hop:
        return Hop(self.underlay_address, PORT, ecn=True, superpacket=self.kind == "ebpf")

    def packets(self, verdict: str) -> int:
        """How many packets met this verdict so far, in both halves together."""
        return self.stats.verdicts[verdict].packets

    def open(self) -> Datapath:
        """Open the datapath of this side's kind; the TUN device is kept for ebpf."""
        settings = self.settings
        with inside(self.host):
            tun = open_tun(settings.device, settings.queues, keep=self.kind == "ebpf")
            userspace = UserspaceDatapath(settings, tun, open_underlay(settings.underlay_address, PORT, settings.queues))
            if self.kind == "userspace":
                self.datapath = userspace
                return userspace
            self.kernels.append(Kernel())
            self.datapath = EbpfDatapath(settings, self.options, userspace, BpfHost(self.kernels[-1]))
            return self.datapath

    def publish(self, table: ForwardTable) -> None:
        with inside(self.host):
            assert self.datapath is not None
            self.datapath.publish(table)

    def check(self, *, closely: bool = True) -> None:
        with inside(self.host):
            assert self.datapath is not None
            self.datapath.check(closely=closely)

    @property
    def stats(self) -> DatapathStats:
        assert self.datapath is not None
        return self.datapath.stats()

    def close(self) -> None:
        """Everything of this side's datapath is gone; safe to call twice."""
        with inside(self.host):
            datapath, self.datapath = self.datapath, None
            if datapath is not None:
                datapath.teardown()
        while self.kernels:
            self.kernels.pop().close()


@dataclass(frozen=True, slots=True)
class EbpfOverlay:
    """Both hosts."""

    a: EbpfSide
    b: EbpfSide

    def publish(self, generation: int = 1) -> None:
        self.a.publish(table(self.a, self.b, generation=generation))
        self.b.publish(table(self.b, self.a, generation=generation))


def table(own: EbpfSide, *peers: EbpfSide, generation: int = 1) -> ForwardTable:
    """The table of one host: its own subnets, and those of its peers."""
    entries = (TableEntry(subnet, peer.hop) for peer in peers for subnet in (peer.subnet, peer.subnet6))
    return ForwardTable(generation, tuple(entries), (own.subnet, own.subnet6), own.mtu_bytes)


def tap(where: Namespace, device: str) -> socket.socket:
    """A packet socket that sees everything on a device before tc does, so also what the programs take away."""
    with inside(where):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    made.bind((device, 3))
    made.settimeout(2)
    return made


def drained(wire: socket.socket, ethertype: bytes = b"\x08\x00") -> Iterator[bytes]:
    """What a tap has seen so far: IPv4 packets, or those of another type, their link header taken off."""
    wire.setblocking(False)
    while True:
        try:
            frame = wire.recv(1 << 17)
        except BlockingIOError:
            return
        if frame[12:14] == ethertype:
            yield frame[14:]


def _underlay(vlan: bool, mtu: int, peer: Namespace) -> str:
    """The uplink: a veth, or VLAN 7 on one whose far end has the tag inside the frame."""
    if not vlan:
        return f"ip link add uplink mtu {mtu} type veth peer name uplink mtu {mtu} netns {peer.path}"
    return (
        f"ip link add trunk mtu {mtu} type veth peer name trunk mtu {mtu} netns {peer.path}; ip link set trunk up;"
        "ip link add link trunk name uplink type vlan id 7"
    )


def _hosts(stack: ExitStack, mtu: int, bridge: bool, vlan: bool, outer: int) -> list[tuple[Namespace, Namespace]]:
    inner_mtu = mtu - OUTER_BYTES[outer]
    made = [(stack.enter_context(namespace()), stack.enter_context(namespace())) for _ in range(2)]
    for each in (each for pair in made for each in pair):
        each.script("sysctl -qw net.ipv6.conf.default.accept_dad=0")  # no address waits a second until it can be used
    left, right = made[0][0], made[1][0]
    left.script(_underlay(vlan, mtu, right))
    if vlan:
        right.script("ip link set trunk up; ip link add link trunk name uplink type vlan id 7")
    for number, (host, pod) in enumerate(made, 1):
        gateway = "cni0" if bridge else "pod0"
        host.script(
            f"{_uplink_address(number, outer)}; ip link set uplink up;"
            f"ip link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod.path}; ip link set pod0 up;"
            + (f"ip link add cni0 mtu {mtu} type bridge; ip link set cni0 up; ip link set pod0 master cni0;" if bridge else "")
            + f"ip addr add 10.5.{number}.1/24 dev {gateway}; sysctl -qw net.ipv4.ip_forward=1"
        )
        pod.script(
            f"ip link set eth0 mtu {inner_mtu} up; ip addr add 10.5.{number}.2/24 dev eth0; ip route add default via 10.5.{number}.1"
        )
    return made


def underlay_address(number: int, outer: int) -> Address:
    """Of a host's uplink."""
    return IPv6Address(f"fd31::{number}") if outer == 6 else IPv4Address(f"172.31.0.{number}")


def _uplink_address(number: int, outer: int) -> str:
    if outer == 6:
        return f"sysctl -qw net.ipv6.conf.all.forwarding=1; ip addr add {underlay_address(number, outer)}/64 dev uplink nodad"
    return f"ip addr add {underlay_address(number, outer)}/24 dev uplink"


def _add_ipv6(side: EbpfSide, gateway: str) -> None:
    """Both families from now on, as in a dual-stack cluster."""
    number = side.number
    side.host.script(
        f"sysctl -qw net.ipv6.conf.all.forwarding=1; ip addr add fd00:5:{number}::1/64 dev {gateway} nodad;"
        f"ip addr add fd00:5:{number}::/128 dev flannel0; ip route add fd00:5::/32 dev flannel0"
    )
    side.pod.script(f"ip addr add fd00:5:{number}::2/64 dev eth0 nodad; ip -6 route add default via fd00:5:{number}::1")


def release() -> tuple[int, ...]:
    """The kernel's version, as far as it counts."""
    return tuple(int(number) for number in os.uname().release.split(".")[:2])


@contextmanager
def ebpf_overlay(
    kinds: tuple[str, str] = ("ebpf", "ebpf"),
    *,
    wire: bool = False,
    gro: bool = False,
    mtu: int = 1500,
    bridge: bool = False,
    vlan: bool = False,
    ipv6: bool = False,
    outer: int = 4,
    source_check: bool = True,
    queues: int = 1,
    published: bool = True,
    **options: Any,
) -> Iterator[EbpfOverlay]:
    """The topology of the module's docstring, with tables published."""
    if options.get("hooks") == "tcx" and release() < (6, 6):
        pytest.skip(f"tcx came with Linux 6.6, this is {os.uname().release}")
    inner_mtu = mtu - OUTER_BYTES[outer]
    with ExitStack() as stack:
        root = stack.enter_context(pin_root())
        sides = []
        for number, (host, pod) in enumerate(_hosts(stack, mtu, bridge, vlan, outer), 1):
            if wire:
                host.script(f"ethtool -K uplink tso off gso off tx-udp-segmentation off gro {'on' if gro else 'off'} >/dev/null")
            settings = DatapathSettings(
                device="flannel0",
                tunnel_address=IPv4Address(f"10.5.{number}.0"),
                underlay_address=underlay_address(number, outer),
                port=PORT,
                tunnel_address6=IPv6Address(f"fd00:5:{number}::") if ipv6 else None,
                source_check=source_check,
                queues=queues,
            )
            chosen = replace(EbpfOptions("uplink", pin_root=root), **options)
            side = EbpfSide(number, host, pod, kinds[number - 1], settings, chosen, inner_mtu)
            stack.callback(side.close)
            side.open()
            host.script(
                f"ip link set flannel0 mtu {inner_mtu} up; ip addr add 10.5.{number}.0/32 dev flannel0;"
                "ip route add 10.5.0.0/16 dev flannel0"
            )
            if ipv6:
                _add_ipv6(side, "cni0" if bridge else "pod0")
            sides.append(side)
        made = EbpfOverlay(*sides)
        if published:
            made.publish()
        yield made


def know_neighbours(made: EbpfOverlay) -> None:
    """A burst that waits for a neighbour would overflow the kernel's queue for that."""
    for target in (made.b.pod_address, made.b.pod_address6):
        ping = ("ping", "-c1", "-W1", str(target))
        eventually(lambda ping=ping: " 1 received" in made.a.pod.run(*ping, check=False), 10, f"{target} answers")
