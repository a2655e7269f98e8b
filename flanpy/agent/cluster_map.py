"""Who has which address, from the agent's own answers; and what the operator means by a name. Pure: answers in, values out.

A target is an address, a subnet, a node (its id or an unambiguous beginning of it, or its public address), or a pod by its name as the
pod registry has it (``NAMESPACE/NAME`` or ``NAME``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Any

from flanpy.errors import UsageError
from flanpy.model import Address, Network

ID_SHOWN = 8
"""Characters of a node id that are shown where there is little room."""
ID_LEAST = 4
"""Characters that name a node, where only one id begins so."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as this node knows it. ``name`` is for people; ``hop`` is its underlay address, with the port where there is one."""

    name: str
    subnets: tuple[Network, ...]
    public_ip: Address
    hop: str
    own: bool = False
    node_id: str = ""
    """Empty for flanneld's nodes, which have none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A prefix, and the node that has it: a subnet, or one pod that keeps its address away from its node's subnet."""

    prefix: Network
    node: Node


@dataclass(frozen=True, slots=True)
class Target:
    """An address, what it is called, and the node that has it; None: it is outside the overlay."""

    name: str
    address: Address
    node: Node | None
    is_node: bool = False
    """Whether the node itself is meant, not a pod of it."""


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """The cluster at one moment, as the agent of this node sees it."""

    own: Node | None
    peers: tuple[Node, ...]
    entries: tuple[Entry, ...]
    networks: tuple[Network, ...]
    pods: Mapping[str, Address]

    @classmethod
    def of(
        cls,
        status: Mapping[str, Any],
        peers: Mapping[str, Any],
        routes: Mapping[str, Any],
        pods: Iterable[Mapping[str, Any]] = (),
    ) -> ClusterMap:
        """From the answers to ``status``, ``peers``, ``routes`` and ``pods``."""
        own = _own(status)
        others = tuple(map(_peer, peers["peers"]))
        nodes = (own, *others) if own else others
        rows = list(pods)
        found: dict[Network, Node] = {}
        for prefix, node in chain(_by_lease(nodes), _by_table(routes["table"], others), _by_registry(rows, nodes)):
            found.setdefault(prefix, node)
        entries = tuple(Entry(prefix, node) for prefix, node in found.items())
        return cls(own, others, entries, _networks(status["network"] or ""), dict(_pod_names(rows)))

    def entry(self, address: Address) -> Entry | None:
        """The longest prefix that holds an address."""
        holding = [each for each in self.entries if each.prefix.version == address.version and address in each.prefix]
        return max(holding, key=lambda each: each.prefix.prefixlen, default=None)

    def inside(self, address: Address) -> bool:
        """Whether an address belongs to the overlay's network."""
        return any(address.version == network.version and address in network for network in self.networks)

    def find(self, text: str) -> Target:
        """What the operator means. Raises UsageError with what there is."""
        if not text.strip():
            raise UsageError("an empty name: give an address, a subnet, a node's id or a pod")
        address = _address(text)
        if address is not None:
            node = next((each for each in self._nodes() if address == each.public_ip), None)
            if node is not None:
                return Target(f"{node.name} ({node.public_ip})", _tunnel_address(node), node, is_node=True)
            entry = self.entry(address)
            return Target(text, address, entry.node if entry else None, is_node=entry is not None and is_base(entry, address))
        if text in self.pods:
            entry = self.entry(self.pods[text])
            return Target(f"{text} ({self.pods[text]})", self.pods[text], entry.node if entry else None)
        return self._node(text)

    def _nodes(self) -> tuple[Node, ...]:
        return (self.own, *self.peers) if self.own else self.peers

    def _node(self, text: str) -> Target:
        wanted = text.removesuffix("…")
        found = [
            node
            for node in self._nodes()
            if text in map(str, node.subnets) or (len(wanted) >= ID_LEAST and node.node_id.startswith(wanted))
        ]
        if len(found) == 1:
            return Target(f"{found[0].name} ({found[0].public_ip})", _tunnel_address(found[0]), found[0], is_node=True)
        if found:
            raise UsageError(f"{text}: several nodes begin so: {', '.join(node.name for node in found[:5])}; give more of the id")
        there = ", ".join(f"{node.name} {node.public_ip}" for node in self.peers[:5]) or "none"
        raise UsageError(
            f"{text}: neither an address nor a subnet, a node's id, a pod or a host name that is known here; nodes: {there}"
        )


def node_name(peer: Mapping[str, Any]) -> str:
    """How a peer is called where there is little room: the beginning of its id, or flanneld's public address."""
    return f"{peer['node'][:ID_SHOWN]}…" if peer["node"] and len(peer["node"]) > ID_SHOWN else peer["node"] or peer["public_ip"]


def is_base(entry: Entry, address: Address) -> bool:
    """Whether this is a subnet's first address, which the node's own tunnel device has."""
    return address == entry.prefix.network_address and entry.prefix.num_addresses > 1


def _own(status: Mapping[str, Any]) -> Node | None:
    lease = status["lease"]
    if lease is None:
        return None
    address = lease["public_ip"]
    return Node("this node", _networks(lease["subnets"]), ip_address(address), address, True, status["node"] or "")


def _peer(peer: Mapping[str, Any]) -> Node:
    address, node_id = ip_address(peer["public_ip"]), peer["node"] or ""
    return Node(node_name(peer), _networks(peer["subnets"]), address, peer["hop"], node_id=node_id)


def _by_lease(nodes: Iterable[Node]) -> Iterator[tuple[Network, Node]]:
    return ((subnet, node) for node in nodes for subnet in node.subnets)


def _by_table(table: Iterable[Mapping[str, Any]], peers: Iterable[Node]) -> Iterator[tuple[Network, Node]]:
    """Single pods too, where a datapath of ours forwards."""
    by_hop = {node.hop: node for node in peers}
    return ((ip_network(row["prefix"]), by_hop[row["hop"]]) for row in table if row["hop"] in by_hop)


def _by_registry(pods: Iterable[Mapping[str, Any]], nodes: Iterable[Node]) -> Iterator[tuple[Network, Node]]:
    """Single pods where the kernel forwards: there is no table."""
    by_id = {node.node_id: node for node in nodes if node.node_id}
    apart = (row for row in pods if row.get("route") in ("own entry", "guest"))
    return ((ip_network(row["address"]), by_id[row["node"]]) for row in apart if row.get("node") in by_id)


def _tunnel_address(node: Node) -> Address:
    return node.subnets[0].network_address


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(word) for word in text.split())


def _pod_names(pods: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Address]]:
    """Full names, and short ones where only one pod has them."""
    rows = list(pods)
    short = [str(row["pod"]) for row in rows]
    for row in rows:
        address = ip_address(row["address"])
        yield f"{row['namespace']}/{row['pod']}", address
        if short.count(str(row["pod"])) == 1:
            yield str(row["pod"]), address
