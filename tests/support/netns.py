"""Two hosts with a pod each and a userspace datapath on both, for tests; everything is gone with the ``with`` block.

pod a 10.5.1.2                                                                  pod b 10.5.2.2
   | veth, gateway 10.5.1.1                               veth, gateway 10.5.2.1 |
host a  flannel0 10.5.1.0/32  <- datapath ->                 flannel0 10.5.2.0/32  host b
   | uplink 172.31.0.1/24 ------------------ veth, MTU 1500 ---------- 172.31.0.2/24 |
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flanpy.datapath import DatapathSettings, DatapathStats
from flanpy.datapath.sockets import SO_RCVBUFFORCE, UnderlaySockets, open_underlay
from flanpy.datapath.userspace import Tuning, UserspaceDatapath
from flanpy.kernel.tun import open_tun
from flanpy.model import Address, ForwardTable, Hop, TableEntry
from tests.support.namespaces import Namespace, inside, namespace

PORT = 8285
MTU = 1472
CLUSTER = IPv4Network("10.5.0.0/16")


@dataclass(frozen=True, slots=True)
class Side:
    """One host: its namespaces, addresses and datapath."""

    number: int
    host: Namespace
    pod: Namespace
    datapath: UserspaceDatapath

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(f"10.5.{self.number}.0/24")

    @property
    def tunnel_address(self) -> IPv4Address:
        return self.subnet.network_address

    @property
    def pod_address(self) -> IPv4Address:
        return self.subnet[2]

    @property
    def underlay_address(self) -> IPv4Address:
        return IPv4Address(f"172.31.0.{self.number}")

    @property
    def hop(self) -> Hop:
        return Hop(self.underlay_address, PORT)

    def packets(self, verdict: str) -> int:
        """How many packets met this verdict so far."""
        return self.datapath.stats().verdicts[verdict].packets


@dataclass(frozen=True, slots=True)
class Overlay:
    """Both hosts."""

    a: Side
    b: Side


def table(own: Side, *peers: Side, generation: int = 1) -> ForwardTable:
    """The table of one host: its own subnet, and those of its peers."""
    return ForwardTable(generation, tuple(TableEntry(peer.subnet, peer.hop) for peer in peers), (own.subnet,), MTU)


def start(command: list[str], where: Namespace) -> subprocess.Popen[str]:
    """Start a command inside a namespace."""
    with inside(where):
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def counters(stats: DatapathStats) -> dict[str, int]:
    """The verdicts that packets have met, by name; zeros left out."""
    return {name: count.packets for name, count in stats.verdicts.items() if count.packets}


def _join(left: Namespace, right: Namespace, names: tuple[str, str], *, mtu: int = 1500) -> None:
    """A veth pair between two namespaces, both ends up."""
    left.script(
        f"ip link add {names[0]} mtu {mtu} type veth peer name {names[1]} mtu {mtu} netns {right.path}; ip link set {names[0]} up"
    )
    right.script(f"ip link set {names[1]} up")


def _wire(where: Namespace, device: str, *, gro: bool) -> None:
    """No superpackets on this end, neither TCP's nor UDP's nor VXLAN's: every packet is at most of MTU size, as on a real wire."""
    kinds = ("tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
    off = " ".join(f"{kind} off" for kind in kinds)
    where.script(f"ethtool -K {device} {off} gro {'on' if gro else 'off'} >/dev/null")


OpenUnderlay = Callable[[IPv4Address, int, int], UnderlaySockets]


def _open(
    number: int,
    host: Namespace,
    underlay: OpenUnderlay,
    *,
    queues: int,
    source_check: bool,
    spin_us: int,
    tuning: Tuning | None,
) -> UserspaceDatapath:
    settings = DatapathSettings(
        device="flannel0",
        tunnel_address=IPv4Address(f"10.5.{number}.0"),
        underlay_address=IPv4Address(f"172.31.0.{number}"),
        port=PORT,
        queues=queues,
        source_check=source_check,
        spin_us=spin_us,
    )
    with inside(host):
        tun = open_tun(settings.device, queues)
        datapath = UserspaceDatapath(settings, tun, underlay(settings.underlay_address, PORT, queues), tuning)
    host.script(
        f"ip link set flannel0 mtu {MTU} up; ip addr add {settings.tunnel_address}/32 dev flannel0; ip route add {CLUSTER} dev flannel0"
    )
    return datapath


def _addresses(number: int, host: Namespace, pod: Namespace) -> None:
    host.script(
        f"sysctl -qw net.ipv4.ip_forward=1; ip addr add 172.31.0.{number}/24 dev uplink;"
        f"ip addr add 10.5.{number}.1/24 dev pod0; ethtool -K pod0 gro on >/dev/null"
    )
    pod.script(f"ip addr add 10.5.{number}.2/24 dev eth0; ip route add default via 10.5.{number}.1; ip link set eth0 mtu {MTU}")


@contextmanager
def overlay(
    *,
    wire: bool = False,
    gro: bool = True,
    queues: int = 1,
    source_check: bool = True,
    spin_us: int = 50,
    tuning: Tuning | None = None,
    published: bool = True,
    underlay: OpenUnderlay = open_underlay,
) -> Iterator[Overlay]:
    """The topology of the module's docstring, with tables published."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(namespace()) for _ in range(2)]
        pods = [stack.enter_context(namespace()) for _ in range(2)]
        _join(hosts[0], hosts[1], ("uplink", "uplink"))
        sides = []
        for number, (host, pod) in enumerate(zip(hosts, pods, strict=True), 1):
            _join(host, pod, ("pod0", "eth0"))
            _addresses(number, host, pod)
            if wire:
                _wire(host, "uplink", gro=gro)
            datapath = _open(number, host, underlay, queues=queues, source_check=source_check, spin_us=spin_us, tuning=tuning)
            stack.callback(datapath.close)
            sides.append(Side(number, host, pod, datapath))
        made = Overlay(*sides)
        if published:
            made.a.datapath.publish(table(made.a, made.b))
            made.b.datapath.publish(table(made.b, made.a))
        yield made


def udp_socket(where: Namespace, address: Address | None = None, port: int = 0, *, ipv6: bool = False) -> socket.socket:
    """A UDP socket of this namespace, bound if an address is given; it gives up receiving after two seconds."""
    ipv6 = ipv6 or (address is not None and address.version == 6)
    with inside(where):
        made = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(2)
    if address is not None:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        made.bind((str(address), port))
    return made


def capture(where: Namespace, device: str) -> socket.socket:
    """A packet socket that sees the IPv4 packets that come in on a device, from now on (after GRO, if the device does that)."""
    with inside(where):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    made.bind((device, 0x0800))
    made.settimeout(2)
    return made
