"""Records of the store to peers: snapshots and changes in, the nodes we send to out; no I/O, no clock.

    records --from_records--> Membership --apply(changes)--> Membership --view--> peers, refusals, foreign leases

Bad items are refused one by one and never take away what already works: while the value of a key is bad, the last good lease
of that key stays until the key is deleted. Where two leases overlap the one that was created first stands, whatever order they
arrive in. A renewal changes revisions only, and the revisions take no part in comparing views.

Cost with n leases: ``apply`` copies two dicts (about 1 ms at 65,536) and decodes the changed records only; ``view`` is O(n log n).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from flanpy.core.codec import decode_lease, key_of
from flanpy.errors import CodecError
from flanpy.model import ForeignLease, Hop, Lease, NetworkConfig, Peer, Record, RecordChange, RecordSet, Refusal, Subnets

UDP = "udp"
Range = IPv4Network | IPv6Network
Block = tuple[int, int, int]
_FIRST_UNICAST, _FIRST_MULTICAST = 0x01000000, 0xE0000000


@dataclass(frozen=True, slots=True)
class Membership:
    """What etcd says about all nodes, at one revision. The mappings are never changed once they are in here."""

    revision: int
    leases: Mapping[str, Lease]
    refusals: Mapping[str, Refusal]


@dataclass(frozen=True, slots=True)
class View:
    """The others as this node should treat them; each tuple is sorted, so that equal content compares equal."""

    peers: tuple[Peer, ...]
    refusals: tuple[Refusal, ...]
    foreign: tuple[ForeignLease, ...]


def from_records(record_set: RecordSet, previous: Membership | None = None) -> Membership:
    """The membership that a listing shows. ``previous`` lends its good lease to a key whose value has become bad."""
    known = previous.leases if previous else {}
    leases: dict[str, Lease] = {}
    refusals: dict[str, Refusal] = {}
    for record in record_set.records:
        _take(record, known.get(record.key), leases, refusals)
    return Membership(record_set.revision, leases, refusals)


def apply(membership: Membership, changes: Iterable[RecordChange]) -> Membership:
    """The membership after these changes; those that it already contains (an older revision) are passed over."""
    leases, refusals, revision = dict(membership.leases), dict(membership.refusals), membership.revision
    for change in changes:
        if change.revision <= membership.revision:
            continue
        revision = max(revision, change.revision)
        before = leases.pop(change.key, None)
        refusals.pop(change.key, None)
        if change.record is not None:
            _take(change.record, before, leases, refusals)
    return Membership(revision, leases, refusals)


def _take(record: Record, before: Lease | None, leases: dict[str, Lease], refusals: dict[str, Refusal]) -> None:
    try:
        leases[record.key] = decode_lease(record)
    except CodecError as exc:
        refusals[record.key] = Refusal(record.key, str(exc))
        if before is not None and before.create_revision == record.create_revision:
            leases[record.key] = before


# ------------------------------------------------------------------------------------------------ the view


def view(membership: Membership, config: NetworkConfig, own: Subnets | None, backend_type: str = UDP) -> View:
    """Who the peers are, seen from the node that holds ``own``."""
    claims = _Claims((lease.subnets for lease in membership.leases.values()), own)
    own_key = None if own is None else key_of(own)
    own_lease = membership.leases.get(own_key) if own_key else None
    peers: list[Peer] = []
    foreign: list[ForeignLease] = []
    refusals = dict(membership.refusals)
    for key, lease in _eldest_first(membership.leases):
        if key == own_key:
            continue
        reason = _unfit(lease, config, own_lease) or claims.conflict(lease.subnets)
        if reason is not None:
            refusals[key] = Refusal(key, reason)
            continue
        claims.add(key, lease.subnets)
        if (lease.attributes.backend_type.lower() or UDP) == backend_type:
            peers.append(Peer(lease.subnets, lease.attributes, hop_of(lease, config), lease))
        else:
            foreign.append(ForeignLease(lease.subnets, lease.attributes, lease))
    return View(
        tuple(sorted(peers, key=lambda peer: _order(peer.subnets))),
        tuple(refusals[key] for key in sorted(refusals)),
        tuple(sorted(foreign, key=lambda lease: _order(lease.subnets))),
    )


def hop_of(lease: Lease, config: NetworkConfig) -> Hop:
    """Where the holder of a lease takes encapsulated packets; port 0 for backends that have none."""
    port = config.backend.options.get("Port") or config.backend.options.get("ListenPort") or 0
    info = lease.attributes.flanpy
    return Hop(lease.attributes.public_ip, port if isinstance(port, int) else 0, info is not None and "ecn" in info.features)


def _eldest_first(leases: Mapping[str, Lease]) -> Iterator[tuple[str, Lease]]:
    return iter(sorted(leases.items(), key=lambda item: (item[1].create_revision, item[0])))


def _order(subnets: Subnets) -> tuple[int, int]:
    ipv4 = int(subnets.ipv4.network_address) if subnets.ipv4 else -1
    return ipv4, int(subnets.ipv6.network_address) if subnets.ipv6 else -1


def _unfit(lease: Lease, config: NetworkConfig, own: Lease | None) -> str | None:
    """Why a lease cannot be a peer whatever the other leases are; None when it can."""
    for subnet in _each(lease.subnets):
        name, network = ("Network", config.network) if subnet.version == 4 else ("IPv6Network", config.ipv6_network)
        if network is None:
            return f"{subnet} is of a family that the network config does not enable"
        if subnet.prefixlen <= network.prefixlen or _block(subnet, network.prefixlen) != _block(network, network.prefixlen):
            return f"{subnet} is not a part of {name} {network}"
    address = lease.attributes.public_ip
    if not _FIRST_UNICAST <= int(address) < _FIRST_MULTICAST or address.is_loopback:
        return f"PublicIP {address} is no unicast address: no node can be reached there"
    if own is not None and address == own.attributes.public_ip:
        return f"PublicIP {address} is our own: an earlier lease of this node, or a node behind the same address"
    return None


class _Claims:
    """Which address ranges are spoken for, so that an overlap is found without comparing every pair.

    Ranges are aligned blocks, so two overlap exactly when one contains the other. ``_holders`` has every block that is held,
    ``_above`` every block of a length in use that contains a held one; blocks are (IP version, length, leading bits).
    """

    def __init__(self, everybody: Iterable[Subnets], own: Subnets | None) -> None:
        self._holders: dict[Block, str] = {}
        self._above: dict[Block, str] = {}
        used = {subnet.prefixlen * 8 + subnet.version for subnets in everybody for subnet in _each(subnets)}
        self._lengths = {version: sorted(use >> 3 for use in used if use & 7 == version) for version in (4, 6)}
        if own is not None:
            self.add("our own", own)

    def add(self, holder: str, subnets: Subnets) -> None:
        """These ranges belong to ``holder``."""
        for subnet in _each(subnets):
            for block in self._up_from(subnet):
                self._above.setdefault(block, holder)
            self._holders[_block(subnet, subnet.prefixlen)] = holder

    def conflict(self, subnets: Subnets) -> str | None:
        """Why these ranges cannot be had; None when they are free."""
        for subnet in _each(subnets):
            own_block = _block(subnet, subnet.prefixlen)
            holder = self._holders.get(own_block) or self._above.get(own_block)
            holder = holder or next((self._holders[block] for block in self._up_from(subnet) if block in self._holders), None)
            if holder is not None:
                return f"{subnet} overlaps {holder}, which was there first"
        return None

    def _up_from(self, subnet: Range) -> Iterator[Block]:
        return (_block(subnet, length) for length in self._lengths[subnet.version] if length < subnet.prefixlen)


def _each(subnets: Subnets) -> Iterator[Range]:
    if subnets.ipv4 is not None:
        yield subnets.ipv4
    if subnets.ipv6 is not None:
        yield subnets.ipv6


def _block(subnet: Range, length: int) -> Block:
    return subnet.version, length, int(subnet.network_address) >> (subnet.max_prefixlen - length)
