"""The pod registry: records below ``pods/`` to entries, and which of them this node forwards by; no I/O, no clock.

    key    pods/10.244.1.5        pods/fd00:244:1::5                              (the one spelling that ``ipaddress`` gives)
    value  {"node":"3f0c…","namespace":"default","name":"web-0","container":"9b1f…"}

An entry is bound to the etcd lease of its node's subnet and vanishes with it. It needs no route of its own as long as its address lies
in its node's subnet; where a pod has kept its address on another node, that one address goes there (longest prefix wins).

Values come from anybody who can write to etcd. Each entry is judged by itself; a bad one is refused with its reason and takes nothing
from the others: no entry can capture an address of a node, the first or last addresses of anybody's subnet, or a whole subnet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import MappingProxyType

from flanpy.core.codec import NODE_ID
from flanpy.core.membership import View
from flanpy.errors import CodecError
from flanpy.model import Address, Lease, Network, NetworkConfig, Peer, Record, RecordChange, RecordSet, Refusal, Subnets
from flanpy.strict_json import JsonError, JsonObject, parse_json, render_json

PODS = "pods/"
"""The directory of the registry below the prefix."""
MAX_VALUE_BYTES = 4096
"""Largest value that is looked at; ours are below 600 bytes."""

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})", re.ASCII)
"""What a pod, its namespace and its container may be called."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as it is registered: ``node`` is the id of the node that has it; ``namespace`` and ``name`` may be ""."""

    address: Address
    node: str
    namespace: str
    name: str
    container: str

    @property
    def identity(self) -> tuple[str, ...]:
        """What stays the same when the pod moves: its name, or its container's id where the runtime gives it none."""
        return (self.namespace, self.name) if self.name else (self.container,)

    @property
    def shown(self) -> str:
        """The pod in a message."""
        return f"{self.namespace}/{self.name}" if self.name else self.container


@dataclass(frozen=True, slots=True)
class PodEntry:
    """A pod's record as it stands in etcd."""

    pod: Pod
    create_revision: int
    mod_revision: int
    etcd_lease_id: int


@dataclass(frozen=True, slots=True)
class Registry:
    """What etcd says about all pods. ``revisions``: of every key that is there, readable or not. Mappings are never changed."""

    revision: int = 0
    entries: Mapping[str, PodEntry] = field(default_factory=lambda: MappingProxyType({}))
    refusals: Mapping[str, Refusal] = field(default_factory=lambda: MappingProxyType({}))
    revisions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


# ------------------------------------------------------------------------------------------------ records


def pod_key(address: Address) -> str:
    """The etcd key of a pod, relative to the prefix."""
    return f"{PODS}{address}"


def address_of(key: str) -> Address:
    """The address that a key names; raises CodecError for any other spelling of it, and for what is no address."""
    text = key.removeprefix(PODS)
    try:
        address = ip_address(text)
    except ValueError as exc:
        raise CodecError(f"key: {ascii(text)[:60]} is not one address such as 10.244.1.5") from exc
    if isinstance(address, IPv6Address) and address.scope_id:
        raise CodecError(f"key: {ascii(text)[:60]} has a zone ('%' and an interface), which means something on one node alone")
    if pod_key(address) != key:
        raise CodecError(f"key: {ascii(text)[:60]} is spelled differently from {address}")
    return address


def encode_pod(pod: Pod) -> bytes:
    """The value of a pod's record."""
    members = (("node", pod.node), ("namespace", pod.namespace), ("name", pod.name), ("container", pod.container))
    return render_json(JsonObject(members)).encode()


def decode_pod(record: Record) -> PodEntry:
    """The entry that a record holds; raises CodecError that names the field."""
    address = address_of(record.key)
    if len(record.value) > MAX_VALUE_BYTES:
        raise CodecError(f"value: {len(record.value)} bytes, at most {MAX_VALUE_BYTES} are read")
    try:
        value = parse_json(record.value)
    except JsonError as exc:
        raise CodecError(f"value: {exc}") from exc
    if not isinstance(value, JsonObject):
        raise CodecError('value: not a JSON object such as {"node":"…","namespace":"default","name":"web-0","container":"…"}')
    pod = Pod(
        address=address,
        node=_word(value, "node", NODE_ID),
        namespace=_word(value, "namespace", NAME, optional=True),
        name=_word(value, "name", NAME, optional=True),
        container=_word(value, "container", NAME),
    )
    return PodEntry(pod, record.create_revision, record.mod_revision, record.etcd_lease_id)


def _word(value: JsonObject, name: str, pattern: re.Pattern[str], *, optional: bool = False) -> str:
    found = value.get(name)
    if optional and found in (None, ""):
        return ""
    if not isinstance(found, str) or not pattern.fullmatch(found):
        raise CodecError(f"{name}: {ascii(found)[:60]} is not a name (letters, digits, '.', '_', '-'; at most 253)")
    return found


def from_records(record_set: RecordSet) -> Registry:
    """The registry that a listing shows."""
    return _with(Registry(record_set.revision), record_set.records)


def apply(registry: Registry, changes: Iterable[RecordChange]) -> Registry:
    """The registry after these changes, those that it contains already passed over: revisions are compared for each key.

    So the outcome of an own write may be put in before the watch tells of it.
    """
    gone: list[str] = []
    come: dict[str, Record] = {}
    for change in changes:
        known = come[change.key].mod_revision if change.key in come else registry.revisions.get(change.key, 0)
        if change.revision <= max(known, registry.revision):
            continue
        come.pop(change.key, None)
        if change.record is None:
            gone.append(change.key)
        else:
            come[change.key] = change.record
    return _with(_without(registry, gone), come.values()) if gone or come else registry


def _without(registry: Registry, keys: Iterable[str]) -> Registry:
    entries, refusals, revisions = dict(registry.entries), dict(registry.refusals), dict(registry.revisions)
    for key in keys:
        for mapping in (entries, refusals, revisions):
            mapping.pop(key, None)
    return replace(registry, entries=entries, refusals=refusals, revisions=revisions)


def _with(registry: Registry, records: Iterable[Record]) -> Registry:
    entries, refusals, revisions = dict(registry.entries), dict(registry.refusals), dict(registry.revisions)
    for record in records:
        entries.pop(record.key, None)
        refusals.pop(record.key, None)
        revisions[record.key] = record.mod_revision
        try:
            entries[record.key] = decode_pod(record)
        except CodecError as exc:
            refusals[record.key] = Refusal(record.key, str(exc))
    return replace(registry, entries=entries, refusals=refusals, revisions=revisions)


# ------------------------------------------------------------------------------------------------ the judgement


@dataclass(frozen=True, slots=True)
class PodPlace:
    """An accepted entry and where its pod is: at ``peer``, or here when that is None. ``moved``: outside of that node's subnet."""

    entry: PodEntry
    peer: Peer | None
    moved: bool


@dataclass(frozen=True, slots=True)
class PodView:
    """The registry as this node should treat it: accepted entries by key, and the refused ones."""

    places: Mapping[str, PodPlace] = field(default_factory=lambda: MappingProxyType({}))
    refusals: tuple[Refusal, ...] = ()

    @property
    def moved(self) -> Iterator[PodPlace]:
        """The pods of other nodes that need a route of their own."""
        return (place for place in self.places.values() if place.moved and place.peer is not None)


class PodJudge:
    """Says of one entry after the other why it is refused, if it is; made anew for each view of the nodes."""

    def __init__(
        self, config: NetworkConfig, own: Lease, node_id: str, view: View, own_addresses: Iterable[Address] = ()
    ) -> None:
        self._config = config
        self._own = own
        self._node_id = node_id
        self._peers = {peer.attributes.flanpy.node: peer for peer in view.peers if peer.attributes.flanpy is not None}
        self._foreign = {each.attributes.flanpy.node for each in view.foreign if each.attributes.flanpy is not None}
        self._nodes = {own.attributes.public_ip, own.attributes.public_ipv6, *own_addresses}
        for peer in view.peers:
            self._nodes.update((peer.attributes.public_ip, peer.attributes.public_ipv6))

    def view(self, registry: Registry, before: PodView | None = None, kept: Iterable[Lease] = ()) -> PodView:
        """Judge all entries. What ``before`` has accepted stays accepted while its record stands, also while its node renews its lease.

        It stays without its record too while its node is one of the ``kept`` (``core.grace``): they vanish together.
        """
        places = self._kept(registry, before, kept)
        refusals = dict(registry.refusals)
        for key, entry in registry.entries.items():
            known = before.places.get(key) if before is not None else None
            trusted = known is not None and known.entry == entry
            reason = self.unfit(entry.pod.address) or self._wrong_node(entry, trusted=trusted)
            if reason is None:
                peer = self._peers.get(entry.pod.node) if entry.pod.node != self._node_id else None
                places[key] = PodPlace(entry, peer, not self._is_home(entry.pod.address, peer))
            else:
                refusals[key] = Refusal(key, reason)
        return PodView(places, tuple(refusals[key] for key in sorted(refusals)))

    def _kept(self, registry: Registry, before: PodView | None, kept: Iterable[Lease]) -> dict[str, PodPlace]:
        nodes = {each.attributes.flanpy.node for each in kept if each.attributes.flanpy is not None} & self._peers.keys()
        return {
            key: replace(place, peer=self._peers[place.entry.pod.node])
            for key, place in (before.places.items() if before is not None and nodes else ())
            if place.entry.pod.node in nodes and key not in registry.revisions
        }

    def is_ours(self, address: Address) -> bool:
        """Whether an address lies in our own subnet."""
        return self._is_home(address, None)

    def unfit(self, address: Address) -> str | None:
        """Why no pod can have this address; None when one can."""
        name, network, length = self._family(address)
        if network is None:
            return f"IPv{address.version} is not enabled in the network config"
        if address not in network:
            return f"{address} lies outside of {name} {network}"
        if address in self._nodes:
            return f"{address} is the address of a node, not of a pod"
        kept = _kept(_block(address, length)) | self._kept_by_us(address)
        if address in kept:
            return f"{address} belongs to the subnet itself (its first two addresses and its last are no pod's)"
        return None

    def _kept_by_us(self, address: Address) -> set[Address]:
        subnet = _of(self._own.subnets, address.version)
        return set() if subnet is None else _kept(subnet)

    def _family(self, address: Address) -> tuple[str, Network | None, int]:
        config = self._config
        if isinstance(address, IPv4Address):
            return "Network", config.network, config.subnet_len
        return "IPv6Network", config.ipv6_network, config.ipv6_subnet_len

    def _wrong_node(self, entry: PodEntry, *, trusted: bool) -> str | None:
        node = entry.pod.node
        if node == self._node_id:
            return None
        peer = self._peers.get(node)
        if peer is None:
            return f"node {node} " + ("runs another backend" if node in self._foreign else "has no lease, or none that is used")
        if _of(peer.subnets, entry.pod.address.version) is None:
            return f"node {node} has no IPv{entry.pod.address.version} subnet: it takes no such packets"
        bound = peer.lease.etcd_lease_id
        if bound and entry.etcd_lease_id != bound and not trusted:
            return f"it is not bound to the etcd lease of node {node}: of an earlier lease, or written by somebody else"
        return None

    def _is_home(self, address: Address, peer: Peer | None) -> bool:
        subnet = _of(self._own.subnets if peer is None else peer.subnets, address.version)
        return subnet is not None and address in subnet


def _of(subnets: Subnets, version: int) -> Network | None:
    return subnets.ipv4 if version == 4 else subnets.ipv6


def _block(address: Address, length: int) -> Network:
    return ip_network((address, length), strict=False)


def _kept(subnet: Network) -> set[Address]:
    """Addresses of a subnet that no pod has: its tunnel device's, its bridge's, and the broadcast address."""
    return {subnet[0], subnet[1]} | ({subnet[-1]} if subnet.version == 4 else set())
