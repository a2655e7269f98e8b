"""What a lab consists of, as values: hosts on an underlay, and segments of pods on them. Pure: nothing here runs anything.

                        etcd (172.31.9.254)
       ┌──────────────── underlay, a bridge, MTU 1500 ────────────────┐
       │ host1                    │ host2                             │ host3
      eth0 172.31.9.1            eth0 172.31.9.2                     eth0 172.31.9.3
     ┌─ host1 ─────────┐        ┌─ host2 ─────────┐                 ┌─ host3 ─────────┐
     │ cni0 a.b.c.1/24 │        │ cni0            │                 │ cni0            │      a bridge for each segment
     └──┬──────────┬───┘        └──┬──────────┬───┘                 └──┬──────────┬───┘
     eth0 .254   eth0 .253       eth0       eth0                     eth0       eth0
     host1-pod1  host1-pod2      host2-pod1 host2-pod2               host3-pod1 host3-pod2

Every box is a network namespace of the same name. A segment is one way to carry packets between the pods of different hosts
(the overlay, plain routes, kernel VXLAN), with a bridge and pods of its own on every host, so that several can be compared side
by side on one underlay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import MappingProxyType

from flanpy.errors import LabError, UsageError

UNDERLAY = IPv4Network("172.31.9.0/24")
BRIDGE = "underlay"
UPLINK = "eth0"
MOST_HOSTS = 200
MOST_PODS = 100
MODES = ("superpacket", "wire", "wire-gro", "wire-uso")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A host: a network namespace with an uplink; ``port`` is its end on the underlay bridge."""

    name: str
    address: IPv4Address

    @property
    def port(self) -> str:
        """The name of the host's port on the underlay bridge."""
        return self.name


@dataclass(frozen=True, slots=True)
class Plan:
    """Hosts on one underlay. ``mode``: ``superpacket`` (veth as is), ``wire`` (every packet within the MTU), ``wire-gro``, ``wire-uso``."""

    hosts: tuple[HostPlan, ...]
    underlay: IPv4Network = UNDERLAY
    mtu_bytes: int = 1500
    mode: str = "superpacket"

    @property
    def services_address(self) -> IPv4Address:
        """Where etcd listens: the underlay bridge's own address, outside of every host."""
        return self.underlay[-2]

    def host(self, name: str) -> HostPlan:
        """The host of that name; LabError when there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"{name}: no such host in this lab (there are: {', '.join(host.name for host in self.hosts)})")


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod: a network namespace behind a veth on a bridge of its host."""

    name: str
    host: str
    address: IPv4Interface
    gateway: IPv4Address
    port: str
    """Its end on the host's bridge; within the 15 characters of a device name."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Pods on every host that reach each other in one way; ``subnets`` by host name."""

    bridge: str
    mtu_bytes: int
    subnets: Mapping[str, IPv4Network]
    pods: tuple[PodPlan, ...]

    def pods_of(self, host: str) -> tuple[PodPlan, ...]:
        """The pods of one host, in order."""
        return tuple(pod for pod in self.pods if pod.host == host)


def plan_lab(hosts: int = 3, *, mode: str = "superpacket", mtu_bytes: int = 1500) -> Plan:
    """The underlay of a lab with hosts named host1, host2, ..."""
    if not 1 <= hosts <= MOST_HOSTS:
        raise UsageError(f"--hosts {hosts}: a lab has 1 to {MOST_HOSTS} hosts")
    if mode not in MODES:
        raise UsageError(f"--underlay {mode}: must be one of {', '.join(MODES)}")
    if not 576 <= mtu_bytes <= 9000:
        raise UsageError(f"--mtu {mtu_bytes}: must be 576 to 9000 bytes")
    return Plan(tuple(HostPlan(f"host{n}", UNDERLAY[n]) for n in range(1, hosts + 1)), mtu_bytes=mtu_bytes, mode=mode)


def plan_segment(
    subnets: Mapping[str, IPv4Network], pods_per_host: int, *, bridge: str = "cni0", mtu_bytes: int, infix: str = "pod"
) -> Segment:
    """Pods HOST-pod1, HOST-pod2, ... on a bridge that has the first address of the host's subnet.

    They have the last addresses, pod1 the very last: host-local gives the first ones to pods that a CNI plugin attaches beside them.
    """
    pods = tuple(
        _plan_pod(host, subnet, number, infix) for host, subnet in subnets.items() for number in range(1, pods_per_host + 1)
    )
    return Segment(bridge, mtu_bytes, MappingProxyType(dict(subnets)), pods)


def _plan_pod(host: str, subnet: IPv4Network, number: int, infix: str) -> PodPlan:
    if number > min(MOST_PODS, subnet.num_addresses - 3):
        raise UsageError(f"--pods: {number} pods do not fit into {host}'s subnet {subnet} (at most {subnet.num_addresses - 3})")
    address = IPv4Interface(f"{subnet[-1 - number]}/{subnet.prefixlen}")
    return PodPlan(f"{host}-{infix}{number}", host, address, subnet[1], f"veth-{infix}{number}")


def fixed_subnets(plan: Plan, network: IPv4Network) -> dict[str, IPv4Network]:
    """A /24 of ``network`` for each host in order, for segments that nobody leases for."""
    blocks = network.subnets(new_prefix=24)
    next(blocks)
    return {host.name: next(blocks) for host in plan.hosts}


def check_name(name: str) -> str:
    """A lab's name, if it is one: it becomes a directory's name."""
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(f"{name!r}: a lab's name has 1 to 31 letters a-z, digits and hyphens, and begins with a letter or digit")
    return name
