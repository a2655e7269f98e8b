"""Records of the store to peers: snapshots and changes in, the nodes we send to out; no I/O, no clock.

    records --from_records--> Membership --apply(changes)--> Membership --view--> peers, refusals, foreign leases

Bad items are refused one by one and never take away what already works: while the value of a key is bad, the last good lease
of that key stays until the key is deleted. Where two leases overlap the one that was created first stands, whatever order they
arrive in. A renewal changes revisions only, and the revisions take no part in comparing views.

Cost at 65,536 leases: ``apply`` copies two dicts (about 1 ms) and decodes the changed records only; ``view`` is O(n log n) and
takes half a second, so a caller takes a burst of changes together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType

from flanpy.core.codec import decode_lease, key_of
from flanpy.errors import CodecError
from flanpy.model import (
    Address,
    ForeignLease,
    Hop,
    KeptLease,
    Lease,
    NetworkConfig,
    Peer,
    Record,
    RecordChange,
    RecordSet,
    Refusal,
    Subnets,
)

UDP = "udp"
Block = tuple[int, int, int]
_FIRST_UNICAST, _FIRST_MULTICAST = 0x01000000, 0xE0000000
_NO_FEATURES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Membership:
    """What etcd says about all nodes, at one revision. The mappings are never changed once they are in here."""

    revision: int
    leases: Mapping[str, Lease]
    refusals: Mapping[str, Refusal]
    cluster: int = 0
    """Id of the etcd cluster that was listed; 0: not known."""


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
    return Membership(record_set.revision, leases, refusals, record_set.cluster)


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
    return Membership(revision, leases, refusals, membership.cluster)


def _take(record: Record, before: Lease | None, leases: dict[str, Lease], refusals: dict[str, Refusal]) -> None:
    try:
        leases[record.key] = decode_lease(record)
    except CodecError as exc:
        refusals[record.key] = Refusal(record.key, str(exc))
        if before is not None and before.create_revision == record.create_revision:
            leases[record.key] = before


# ------------------------------------------------------------------------------------------------ the view


def view(
    membership: Membership,
    config: NetworkConfig,
    own: Subnets | None,
    backend_type: str = UDP,
    kept: Mapping[str, KeptLease] = MappingProxyType({}),
) -> View:
    """Who the peers are, seen from the node that holds ``own``; ``kept`` leases (``core.grace``) get what the living leave."""
    kept = {key: each for key, each in kept.items() if key not in membership.leases}
    judge = _Judge(membership, config, own, [each.lease for each in kept.values()])
    peers: list[Peer] = []
    foreign: list[ForeignLease] = []
    refusals = dict(membership.refusals)
    for key, lease in sorted(membership.leases.items(), key=_age):
        if key == judge.own_key:
            continue
        if (reason := judge.refuses(key, lease)) is not None:
            refusals[key] = Refusal(key, reason)
        elif _backend(lease) == backend_type:
            peers.append(Peer(lease.subnets, lease.attributes, hop_of(lease, config), lease))
        else:
            foreign.append(ForeignLease(lease.subnets, lease.attributes, lease))
    for key, each in sorted(kept.items(), key=lambda item: _age((item[0], item[1].lease))):
        lease = each.lease
        if key != judge.own_key and _backend(lease) == backend_type and judge.refuses(key, lease) is None:
            peers.append(Peer(lease.subnets, lease.attributes, hop_of(lease, config), lease, each))
    sound: list[Peer] = []
    inside: list[Peer] = []
    for peer in peers:
        (inside if judge.holds(peer.attributes.address) else sound).append(peer)
    refusals |= {key_of(peer.subnets): _inside(peer) for peer in inside}
    return View(
        tuple(sorted(sound, key=_place)),
        tuple(refusals[key] for key in sorted(refusals)),
        tuple(sorted(foreign, key=_place)),
    )


def _backend(lease: Lease) -> str:
    return lease.attributes.backend_type.lower() or UDP


def _inside(peer: Peer) -> Refusal:
    """Of a peer whose address lies in a subnet that is leased."""
    reason = f"{_named(peer.attributes.address)} lies in a leased subnet: packets to it would be encapsulated again"
    return Refusal(key_of(peer.subnets), reason)


def hop_of(lease: Lease, config: NetworkConfig) -> Hop:
    """Where the holder of a lease takes encapsulated packets: by IPv4 if it has such an address; port 0 for backends that have none."""
    options = config.backend.options
    port = options.get("Port") or options.get("ListenPort") or 0
    attributes = lease.attributes
    features = attributes.flanpy.features if attributes.flanpy is not None else _NO_FEATURES
    return Hop(attributes.address, port if isinstance(port, int) else 0, "ecn" in features, "superpacket" in features)


def _is_unicast(address: Address) -> bool:
    """Whether it can be one node's on an underlay; compared as numbers, for 65,536 leases are judged in one go."""
    number = int(address)
    if address.version == 4:
        return _FIRST_UNICAST <= number < _FIRST_MULTICAST and number >> 24 != 127
    return number >> 48 != 0 and number >> 120 != 0xFF and number >> 118 != 0xFE80 >> 6


def _named(address: Address) -> str:
    return f"PublicIP{'' if address.version == 4 else 'v6'} {address}"


def _age(item: tuple[str, Lease]) -> tuple[int, str]:
    return item[1].create_revision, item[0]


def _place(item: Peer | ForeignLease) -> tuple[int, int]:
    ipv4, ipv6 = item.subnets.ipv4, item.subnets.ipv6
    return -1 if ipv4 is None else int(ipv4.network_address), -1 if ipv6 is None else int(ipv6.network_address)


class _Judge:
    """Says of one lease after the other, the oldest first, why it is refused; remembers which ranges are spoken for.

    Ranges are aligned blocks, so two overlap exactly when one contains the other. ``_holders`` has every block that is held,
    ``_above`` every block of a length in use that contains a held one; blocks are (IP version, length, first address).
    """

    def __init__(self, membership: Membership, config: NetworkConfig, own: Subnets | None, more: Iterable[Lease]) -> None:
        self.own_key = None if own is None else key_of(own)
        own_lease = membership.leases.get(self.own_key) if self.own_key else None
        self._own_address = None if own_lease is None else own_lease.attributes.address
        self._networks = {4: ("Network", config.network), 6: ("IPv6Network", config.ipv6_network)}
        self._inside = {
            version: (network.prefixlen, int(network.network_address), int(network.broadcast_address))
            for version, (_, network) in self._networks.items()
            if network is not None
        }
        self._holders: dict[Block, str] = {}
        self._above: dict[Block, str] = {}
        own_blocks = () if own is None else _blocks(own)
        self._shifts = _shifts(membership.leases.values(), more, own_blocks)
        self._wider = {
            (version, length): tuple(each for each in shifts if each[0] < length)
            for version, shifts in self._shifts.items()
            for length, _ in shifts
        }
        for block in own_blocks:
            self._hold(block, "our own")

    def refuses(self, key: str, lease: Lease) -> str | None:
        """Why this lease cannot be a peer; None when it can, and then its ranges are its own from now on."""
        blocks = _blocks(lease.subnets)
        for block in blocks:
            reason = self._outside(block) or (self._taken(block) if self._may_be_taken(block) else None)
            if reason is not None:
                return reason
        address = lease.attributes.address
        if not _is_unicast(address):
            return f"{_named(address)} is no unicast address: no node can be reached there"
        if address == self._own_address:
            return f"{_named(address)} is our own: an earlier lease of this node, or a node behind the same address"
        for block in blocks:
            self._hold(block, key)
        return None

    def holds(self, address: Address) -> bool:
        """Whether an address is in a range that some lease holds."""
        version, number, holders = address.version, int(address), self._holders
        return any((version, length, number >> rest << rest) in holders for length, rest in self._shifts[version])

    def _outside(self, block: Block) -> str | None:
        version, length, first = block
        name, network = self._networks[version]
        if network is None:
            return f"{_shown(block)} is of a family that the network config does not enable"
        shortest, low, high = self._inside[version]
        if length > shortest and low <= first <= high:
            return None
        if length == shortest and first == low:
            return f"{_shown(block)} is all of {name}, of which every node has a part: no other could be reached"
        return f"{_shown(block)} is not a part of {name} {network}"

    def _may_be_taken(self, block: Block) -> bool:
        """False: where all subnets are of one length, as they mostly are, only a lease of the very same one could hold it."""
        return block in self._holders or block in self._above or bool(self._wider[block[:2]])

    def _taken(self, block: Block) -> str | None:
        holder = self._holders.get(block) or self._above.get(block)
        if holder is None:
            holder = next((self._holders[each] for each in self._containing(block) if each in self._holders), None)
        return None if holder is None else f"{_shown(block)} overlaps {holder}, which was there first"

    def _hold(self, block: Block, holder: str) -> None:
        self._holders[block] = holder
        for each in self._containing(block):
            self._above.setdefault(each, holder)

    def _containing(self, block: Block) -> Iterable[Block]:
        """The blocks of the lengths in use that contain this one: none where all subnets are of one length, as they mostly are."""
        version, length, first = block
        wider = self._wider[version, length]
        return [(version, shorter, first >> rest << rest) for shorter, rest in wider] if wider else ()


def _shifts(leases: Iterable[Lease], more: Iterable[Lease], own: Iterable[Block]) -> dict[int, tuple[tuple[int, int], ...]]:
    """By IP version the prefix lengths in use, the shortest first, each with the number of bits behind it."""
    used = {block[:2] for block in own}
    for lease in (*leases, *more):
        ipv4, ipv6 = lease.subnets.ipv4, lease.subnets.ipv6
        if ipv4 is not None:
            used.add((4, ipv4.prefixlen))
        if ipv6 is not None:
            used.add((6, ipv6.prefixlen))
    bits = {4: 32, 6: 128}
    return {
        version: tuple((length, all_ - length) for length in sorted(length for kind, length in used if kind == version))
        for version, all_ in bits.items()
    }


def _blocks(subnets: Subnets) -> tuple[Block, ...]:
    ipv4, ipv6 = subnets.ipv4, subnets.ipv6
    if ipv6 is None and ipv4 is not None:
        return ((4, ipv4.prefixlen, int(ipv4.network_address)),)
    blocks6 = () if ipv6 is None else ((6, ipv6.prefixlen, int(ipv6.network_address)),)
    return blocks6 if ipv4 is None else ((4, ipv4.prefixlen, int(ipv4.network_address)), *blocks6)


def _shown(block: Block) -> str:
    version, length, first = block
    return str(IPv4Network((first, length)) if version == 4 else IPv6Network((first, length)))
