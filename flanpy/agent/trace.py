"""The way of a packet from one address to another, step by step, as this node and the cluster's leases tell it. Sends nothing.

    here      the kernel is asked: bridge, port, route, underlay; the agent: table, next hop
    there     only what leases say: another node's routes are that node's business, and are asked for there

``Look`` is what is asked of this machine, so that the rules can be tried without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from flanpy.agent.cluster_map import ClusterMap, Entry, Node, is_base
from flanpy.kernel.lookup import Behind, Way
from flanpy.model import Address

HERE = "here"


class Look(Protocol):
    """What this machine knows."""

    def way(self, destination: Address, source: Address | None = None, arriving: str = "") -> Way:
        """The kernel's route."""

    def behind(self, address: Address, device: str) -> Behind | None:
        """Who has an address on a link."""

    def is_bridge(self, device: str) -> bool:
        """Whether a device is a bridge."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``where`` is ``here`` or a node's name, ``stops`` says that the packet gets no further."""

    where: str
    what: str
    text: str
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carries packets between nodes: the backend, the device packets are routed to, and whether a table of ours decides."""

    backend: str
    devices: tuple[str, ...]
    generation: int
    datapath: str
    uplink: str
    """The underlay interface; where there is no device of our own, packets of other nodes arrive by it."""


def trace(source: Address, target: Address, cluster: ClusterMap, carrier: Carrier, look: Look) -> list[Step]:
    """All steps, up to the target or to where the packet is lost."""
    steps = []
    for step in _trace(source, target, cluster, carrier, look):
        steps.append(step)
        if step.stops:
            break
    return steps


def _trace(source: Address, target: Address, cluster: ClusterMap, carrier: Carrier, look: Look) -> Iterator[Step]:
    if source.version != target.version:
        yield Step(HERE, "start", f"{source} and {target} are of two families: no packet has both", stops=True)
        return
    start, end = cluster.entry(source), cluster.entry(target)
    if start is None and look.way(source).kind != "local":
        yield Step(HERE, "start", f"{source} belongs to no node of the overlay, and is not this machine's", stops=True)
    elif start is None or start.node.own:
        yield from _from_here(source, target, end, cluster, carrier, look)
    elif end is None:
        yield _elsewhere(start.node, source)
        yield Step(start.node.name, "route", f"{target} is outside the overlay: that node's own routes decide")
    else:
        yield _elsewhere(start.node, source)
        yield from _arriving(start, end, source, target, carrier, look)


# ------------------------------------------------------------------------------------------------ packets that begin here


def _from_here(
    source: Address, target: Address, end: Entry | None, cluster: ClusterMap, carrier: Carrier, look: Look
) -> Iterator[Step]:
    home = look.way(source)
    local = home.kind == "local"
    if local:
        yield Step(HERE, "node", f"{source} is an address of this node")
    else:
        yield from _to_pod(source, home, look, "pod")
    way = look.way(target) if local else look.way(target, source, home.device)
    if way.kind == "local":
        yield Step(HERE, "node", f"{target} is an address of this node")
        return
    yield _route(target, way, cluster)
    if end is not None and end.node.own:
        if way.device == home.device and not local:
            yield Step(HERE, "bridge", f"{way.device} switches it from port to port; no overlay, no route")
        yield from _to_pod(target, way, look, "pod")
    elif end is not None:
        yield _handed_over(end, way, carrier)
        yield _underlay(end.node, look)
        yield _there(end, target)
    elif cluster.inside(target):
        yield Step(HERE, "table", f"no node has {target}: answered with unreachable", stops=True)
    else:
        yield Step(HERE, "outside", f"leaves the overlay by {way.device}" + (f" to {way.gateway}" if way.gateway else ""))


def _route(target: Address, way: Way, cluster: ClusterMap) -> Step:
    if way.kind != "unicast":
        hint = "; no node has it" if cluster.inside(target) and not cluster.entry(target) else ""
        return Step(HERE, "route", f"{target}: {way.kind}{hint}", stops=True)
    by = f"via {way.gateway} dev {way.device}" if way.gateway else f"dev {way.device}"
    return Step(HERE, "route", f"{way.matched or target} {by}, MTU {way.mtu_bytes}")


def _to_pod(address: Address, way: Way, look: Look, what: str) -> Iterator[Step]:
    if way.kind != "unicast":
        yield Step(HERE, what, f"{address}: {way.kind}", stops=True)
        return
    kind = "bridge" if look.is_bridge(way.device) else "device"
    behind = look.behind(address, way.device)
    if behind is None:
        yield Step(HERE, what, f"{address} on {kind} {way.device}; it has not been heard of lately, so its port is not known")
    else:
        port = f" port {behind.port}" if behind.port else ""
        yield Step(HERE, what, f"{address} on {kind} {way.device}{port}, {behind.mac}")


def _handed_over(end: Entry, way: Way, carrier: Carrier) -> Step:
    """From the route to the next hop: by our table, or by what the kernel's device knows."""
    if carrier.generation:
        if way.device not in carrier.devices:
            tunnel = " or ".join(carrier.devices)
            return Step(
                HERE, "table", f"the route leads to {way.device}, not to {tunnel}: the datapath never sees it", stops=True
            )
        return Step(
            HERE, "table", f"{end.prefix} -> {end.node.hop} (table {carrier.generation}, datapath {carrier.datapath}), TTL - 1"
        )
    return Step(HERE, carrier.backend, f"{end.prefix} -> {end.node.hop} by {way.device}")


def _underlay(node: Node, look: Look) -> Step:
    way = look.way(node.public_ip)
    if way.kind != "unicast":
        return Step(HERE, "underlay", f"{node.public_ip}: {way.kind}", stops=True)
    by = f"via {way.gateway}" if way.gateway else "on the link"
    return Step(HERE, "underlay", f"{way.device} {way.source} -> {node.hop} {by}, MTU {way.mtu_bytes}")


# ------------------------------------------------------------------------------------------------ packets of other nodes


def _elsewhere(node: Node, source: Address) -> Step:
    return Step(node.name, "pod", f"{source} is on the node {node.public_ip}; run flanpy trace there for its side")


def _there(end: Entry, target: Address) -> Step:
    node = end.node
    what = "the node's own address on the tunnel" if is_base(end, target) else "behind its bridge"
    return Step(node.name, "node", f"{node.public_ip} has {end.prefix}: {target} is {what}")


def _arriving(start: Entry, end: Entry, source: Address, target: Address, carrier: Carrier, look: Look) -> Iterator[Step]:
    sender, receiver = start.node, end.node
    if receiver is sender:
        yield Step(sender.name, "bridge", f"{target} is on the same node: no overlay")
        return
    yield Step(sender.name, "table", f"{end.prefix} -> {receiver.hop}, as that node reads it in etcd")
    if not receiver.own:
        yield _there(end, target)
        return
    yield _checked(start, source, carrier)
    way = look.way(target, source, carrier.devices[0] if carrier.devices else carrier.uplink)
    if way.kind == "local":
        yield Step(HERE, "node", f"{target} is an address of this node")
        return
    if way.kind != "unicast":
        yield Step(HERE, "route", f"{target}: {way.kind}", stops=True)
        return
    yield Step(HERE, "route", f"{way.matched or target} dev {way.device}, MTU {way.mtu_bytes}")
    yield from _to_pod(target, way, look, "pod")


def _checked(start: Entry, source: Address, carrier: Carrier) -> Step:
    if carrier.generation:
        return Step(HERE, "datapath", f"{source} may only come from {start.node.public_ip}, TTL - 1, out of {carrier.devices[0]}")
    return Step(
        HERE, carrier.backend, f"arrives from {start.node.public_ip}" + "".join(f" by {name}" for name in carrier.devices)
    )
