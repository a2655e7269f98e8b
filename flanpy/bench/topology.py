"""The two hosts and two pods of a bed as values, and the shell scripts that make and wire them. Pure: text in, text out.

        pod ── eth0 ═ veth ── HOST a ── uplink ═══ veth, MTU 1500 ═══ uplink ── HOST b ── veth ═ eth0 ── pod
     10.244.1.2        10.244.1.1   192.168.77.1                192.168.77.2   10.244.2.1        10.244.2.2

Each setup has a bed of its own, so beds use the same addresses and never meet. Pods have the MTU that the tunnel leaves, as a
CNI plugin would give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flanpy.lab.topology import MODE_FEATURES

UPLINK = "uplink"
TUNNEL = "flannel0"
PORT = 8285
OVERLAY = IPv4Network("10.244.0.0/16")
OVERHEAD_BYTES = {"routed": 0, "vxlan": 50, "vxlan-agent": 50, "host-gw": 0, "ipip": 20, "wireguard": 80}
"""What a setup's headers take from the underlay's MTU; all others are IP in UDP, 28 bytes."""


@dataclass(frozen=True, slots=True)
class Side:
    """One host of a bed and its pod; places are names of network namespaces."""

    host: str
    pod: str
    underlay: IPv4Address
    subnet: IPv4Network
    pod_number: int = 2
    """Of the pod's address in the subnet."""

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the pod's veth."""
        return self.subnet[1]

    @property
    def pod_address(self) -> IPv4Address:
        """The pod's address."""
        return self.subnet[self.pod_number]


def sides(setup: str) -> tuple[Side, Side]:
    """Both sides of a setup's bed."""
    a = Side(f"{setup}-a", f"{setup}-pod-a", IPv4Address("192.168.77.1"), IPv4Network("10.244.1.0/24"))
    b = Side(f"{setup}-b", f"{setup}-pod-b", IPv4Address("192.168.77.2"), IPv4Network("10.244.2.0/24"))
    return a, b


def inner_mtu(setup: str, underlay_mtu_bytes: int) -> int:
    """The largest packet of a pod."""
    return underlay_mtu_bytes - OVERHEAD_BYTES.get(setup, 28)


def bed_script(setup: str, mtu_bytes: int) -> str:
    """Namespaces, veths and addresses of a bed; everything but the tunnel."""
    a, b = sides(setup)
    lines = [f"ip netns add {place}" for side in (a, b) for place in (side.host, side.pod)]
    lines.append(
        f"ip link add {UPLINK} netns {a.host} mtu {mtu_bytes} type veth peer name {UPLINK} netns {b.host} mtu {mtu_bytes}"
    )
    for side in (a, b):
        lines += _side_lines(side, inner_mtu(setup, mtu_bytes))
    return "\n".join(lines)


def _side_lines(side: Side, mtu_bytes: int) -> list[str]:
    host, pod = f"ip -n {side.host}", f"ip -n {side.pod}"
    knobs = "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1"
    return [
        *(f"ip netns exec {place} sysctl -q -w {knobs}" for place in (side.host, side.pod)),
        f"{host} link add pod0 mtu {mtu_bytes} type veth peer name eth0 netns {side.pod} mtu {mtu_bytes}",
        f"{host} address add {side.underlay}/24 dev {UPLINK}",
        f"{host} address add {side.gateway}/24 dev pod0",
        f"{pod} address add {side.pod_address}/24 dev eth0",
        *(f"{line} up" for line in (f"{host} link set lo", f"{host} link set {UPLINK}", f"{host} link set pod0")),
        *(f"{line} up" for line in (f"{pod} link set lo", f"{pod} link set eth0")),
        f"{pod} route add default via {side.gateway}",
    ]


def routed_script(here: Side, there: Side) -> str:
    """A plain route to the other side's pods: no tunnel."""
    return f"ip -n {here.host} route add {there.subnet} via {there.underlay}"


def vxlan_script(here: Side, there: Side, mtu_bytes: int) -> str:
    """Device, neighbour, forwarding entry and route as flannel's vxlan backend sets them; the MAC ends in the side's subnet."""
    host, device = f"ip -n {here.host}", "flannel.1"
    return "\n".join(
        [
            f"{host} link add {device} mtu {mtu_bytes} address {_mac(here)} type vxlan id 1 local {here.underlay} dev {UPLINK} "
            "dstport 8472 nolearning",
            f"{host} address add {here.subnet[0]}/32 dev {device}",
            f"{host} link set {device} up",
            f"{host} neighbour add {there.subnet[0]} lladdr {_mac(there)} dev {device} nud permanent",
            f"bridge -n {here.host} fdb add {_mac(there)} dev {device} dst {there.underlay} self permanent",
            f"{host} route add {there.subnet} via {there.subnet[0]} dev {device} onlink",
        ]
    )


def _mac(side: Side) -> str:
    return f"02:00:00:00:00:{side.subnet.network_address.packed[2]:02x}"


def tun_script(here: Side, mtu_bytes: int) -> str:
    """Address, MTU and route of a TUN device that a proxy or datapath has opened, as flannel's udp backend sets them."""
    host = f"ip -n {here.host}"
    return "\n".join(
        [
            f"{host} address add {here.subnet[0]}/32 dev {TUNNEL}",
            f"{host} link set {TUNNEL} mtu {mtu_bytes} up",
            f"{host} route add {OVERLAY} dev {TUNNEL}",
        ]
    )


def mode_script(setup: str, mode: str) -> str:
    """Switch both uplinks of a bed to a mode, as the lab does it."""
    return "\n".join(f"ip netns exec {side.host} ethtool -K {UPLINK} {MODE_FEATURES[mode]} >/dev/null" for side in sides(setup))


def trains_script(setup: str, on: bool) -> str:
    """Whether UDP trains leave the sending pod whole; cut in its own device, every packet goes its way alone from there on."""
    return f"ip netns exec {sides(setup)[0].pod} ethtool -K eth0 tx-udp-segmentation {'on' if on else 'off'} >/dev/null"
