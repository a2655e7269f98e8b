"""Records to peers: refused one by one, stable in any order, and quiet when nothing but a revision has changed."""

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.codec import decode_lease, encode_attributes, key_of
from flanpy.core.membership import Membership, View, apply, from_records, view
from flanpy.model import (
    FlanpyInfo,
    ForeignLease,
    Hop,
    NodeAttributes,
    Peer,
    Record,
    RecordChange,
    RecordSet,
    Refusal,
    Subnets,
)
from tests.support.networks import network

CONFIG = network("10.5.0.0/16")
OWN = Subnets(IPv4Network("10.5.1.0/24"))


def record(subnet: str, address: str, created: int = 5, revision: int = 0, kind: str = "", ecn: bool = False) -> Record:
    info = FlanpyInfo("n", frozenset({"ecn"})) if ecn else None
    value = encode_attributes(NodeAttributes(IPv4Address(address), backend_type=kind, flanpy=info))
    return Record(key_of(Subnets(IPv4Network(subnet))), value, created, revision or created, 77)


def seen(*records: Record, own: Subnets | None = OWN) -> View:
    return view(from_records(RecordSet(99, records)), CONFIG, own, "udp")


def peer(item: Record, ecn: bool = False) -> Peer:
    lease = decode_lease(item)
    return Peer(lease.subnets, lease.attributes, Hop(lease.attributes.public_ip, 8285, ecn), lease)


def reasons(result: View) -> dict[str, str]:
    return {refusal.key: refusal.reason for refusal in result.refusals}


def change(item: Record | None, key: str = "", revision: int = 0) -> RecordChange:
    return RecordChange(item.mod_revision if item else revision, item.key if item else key, item)


# ------------------------------------------------------------------------------------------------ the view


def test_the_others_are_peers_and_our_own_lease_is_not() -> None:
    one, two = record("10.5.2.0/24", "192.0.2.2"), record("10.5.3.0/24", "192.0.2.3", ecn=True)
    assert seen(record("10.5.1.0/24", "192.0.2.1"), two, one) == View((peer(one), peer(two, ecn=True)), (), ())


def test_another_backend_type_is_foreign_and_not_sent_to() -> None:
    item = record("10.5.2.0/24", "192.0.2.2", kind="vxlan")
    lease = decode_lease(item)
    assert seen(item) == View((), (), (ForeignLease(lease.subnets, lease.attributes, lease),))


def test_the_type_udp_spelled_out_is_udp() -> None:
    assert len(seen(record("10.5.2.0/24", "192.0.2.2", kind="UDP")).peers) == 1


@pytest.mark.parametrize(
    ("subnet", "address", "reason"),
    [
        ("10.6.2.0/24", "192.0.2.2", "10.6.2.0/24 is not a part of Network 10.5.0.0/16"),
        ("10.5.0.0/16", "192.0.2.2", "10.5.0.0/16 is all of Network, of which every node has a part: no other could be reached"),
        ("0.0.0.0/0", "192.0.2.2", "0.0.0.0/0 is not a part of Network 10.5.0.0/16"),
        (
            "10.5.2.0/24",
            "0.0.0.0",
            "subnets/10.5.2.0-24: PublicIP: 0.0.0.0 is no address, and there is no PublicIPv6: no node can be reached there",
        ),
        ("10.5.2.0/24", "0.0.0.9", "PublicIP 0.0.0.9 is no unicast address: no node can be reached there"),
        ("10.5.2.0/24", "127.0.0.1", "PublicIP 127.0.0.1 is no unicast address: no node can be reached there"),
        ("10.5.2.0/24", "224.0.0.5", "PublicIP 224.0.0.5 is no unicast address: no node can be reached there"),
        ("10.5.2.0/24", "255.255.255.255", "PublicIP 255.255.255.255 is no unicast address: no node can be reached there"),
        (
            "10.5.2.0/24",
            "192.0.2.1",
            "PublicIP 192.0.2.1 is our own: an earlier lease of this node, or a node behind the same address",
        ),
        ("10.5.1.128/25", "192.0.2.2", "10.5.1.128/25 overlaps our own, which was there first"),
        ("10.5.0.0/23", "192.0.2.2", "10.5.0.0/23 overlaps our own, which was there first"),
    ],
)
def test_a_hostile_lease_is_refused_and_the_others_work(subnet: str, address: str, reason: str) -> None:
    own, good, bad = record("10.5.1.0/24", "192.0.2.1"), record("10.5.9.0/24", "192.0.2.9"), record(subnet, address, 1)
    assert seen(bad, own, good) == View((peer(good),), (Refusal(bad.key, reason),), ())


def test_hostile_records_are_refused_key_by_key() -> None:
    good = record("10.5.9.0/24", "192.0.2.9")
    bad = [
        Record("subnets/10.5.2.0-24", b"{", 1, 1, 1),
        Record("subnets/$(reboot)-24", good.value, 1, 1, 1),
        Record("subnets/10.5.3.0-24", b'{"PublicIP":"' + b"1" * (1 << 20), 1, 1, 1),
    ]
    result = seen(*bad, good)
    assert result.peers == (peer(good),) and set(reasons(result)) == {item.key for item in bad}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_elder_of_two_overlapping_leases_stands_in_any_order(order: tuple[int, ...]) -> None:
    records = [
        record("10.5.2.0/24", "192.0.2.2", 7),
        record("10.5.2.0/25", "192.0.2.3", 6),
        record("10.5.2.128/26", "192.0.2.4", 8),
    ]
    result = seen(*(records[at] for at in order))
    assert [str(each.subnets) for each in result.peers] == ["10.5.2.0/25", "10.5.2.128/26"]
    assert reasons(result) == {records[0].key: f"10.5.2.0/24 overlaps {records[1].key}, which was there first"}


def test_a_foreign_lease_keeps_its_range_too() -> None:
    result = seen(record("10.5.2.0/24", "192.0.2.2", 6, kind="vxlan"), record("10.5.2.0/25", "192.0.2.3", 7))
    assert result.peers == () and len(result.foreign) == 1 and len(result.refusals) == 1


def test_a_renewal_makes_an_equal_view_and_another_address_does_not() -> None:
    old, foreign = record("10.5.2.0/24", "192.0.2.2"), record("10.5.3.0/24", "192.0.2.3", kind="vxlan")
    before = from_records(RecordSet(9, (old, foreign)))
    renewed = [replace(item, mod_revision=10 + at, etcd_lease_id=78 + at) for at, item in enumerate((old, foreign))]
    after = apply(before, map(change, renewed))
    assert after != before and view(after, CONFIG, OWN, "udp") == view(before, CONFIG, OWN, "udp")
    moved = apply(after, [change(replace(record("10.5.2.0/24", "192.0.2.99"), mod_revision=12))])
    assert view(moved, CONFIG, OWN, "udp") != view(after, CONFIG, OWN, "udp")


# ------------------------------------------------------------------------------------------------ snapshots and changes


def test_a_bad_value_keeps_the_last_good_lease_until_the_key_is_deleted() -> None:
    good = record("10.5.2.0/24", "192.0.2.2")
    members = from_records(RecordSet(5, (good,)))
    bad = replace(good, value=b"$(reboot)", mod_revision=6)
    for damaged in (apply(members, [change(bad)]), from_records(RecordSet(6, (bad,)), members)):
        result = view(damaged, CONFIG, OWN, "udp")
        assert result.peers == (peer(good),) and set(reasons(result)) == {good.key}
        gone = apply(damaged, [change(None, good.key, 7)])
        assert gone == Membership(7, {}, {})


def test_a_bad_value_of_a_key_created_anew_does_not_revive_the_lease_before() -> None:
    good = record("10.5.2.0/24", "192.0.2.2", 5)
    bad = replace(good, value=b"{", create_revision=8, mod_revision=8)
    assert from_records(RecordSet(8, (bad,)), from_records(RecordSet(5, (good,)))).leases == {}
    assert apply(from_records(RecordSet(5, (good,))), [change(None, good.key, 7), change(bad)]).leases == {}


def test_a_good_value_lifts_the_refusal() -> None:
    good = record("10.5.2.0/24", "192.0.2.2", 5, 9)
    members = from_records(RecordSet(6, (replace(good, value=b"", mod_revision=6),)))
    assert apply(members, [change(good)]) == Membership(9, {good.key: decode_lease(good)}, {})


def test_changes_that_the_snapshot_already_contains_are_passed_over() -> None:
    new = record("10.5.2.0/24", "192.0.2.2", 5, 9)
    members = from_records(RecordSet(9, (new,)))
    assert apply(members, [change(None, new.key, 4), change(replace(new, mod_revision=8))]) == members


SUBNET = st.integers(24, 27).flatmap(
    lambda length: st.integers(0, (1 << (length - 22)) - 1).map(
        lambda at: IPv4Network((0x0A050000 + (at << (32 - length)), length))
    )
)
VALUE = st.integers(1, 6).map(lambda at: encode_attributes(NodeAttributes(IPv4Address(f"192.0.2.{at}")))) | st.just(b"bad")
HISTORY = st.lists(st.tuples(SUBNET, st.none() | VALUE), max_size=30)


def replay(history: list[tuple[IPv4Network, bytes | None]]) -> tuple[list[RecordChange], tuple[Record, ...]]:
    """The changes that a watch would see, and the records that a list would show at the end."""
    records: dict[str, Record] = {}
    changes: list[RecordChange] = []
    for revision, (subnet, value) in enumerate(history, start=1):
        key = key_of(Subnets(subnet))
        old = records.pop(key, None)
        if value is not None:
            records[key] = Record(key, value, old.create_revision if old else revision, revision, revision)
        changes.append(RecordChange(revision, key, records.get(key)))
    return changes, tuple(sorted(records.values(), key=lambda item: item.key))


@given(history=HISTORY, cut=st.integers(0, 30))
def test_a_list_and_the_changes_after_it_end_where_the_changes_alone_end(
    history: list[tuple[IPv4Network, bytes | None]], cut: int
) -> None:
    changes, _ = replay(history)
    early, records = replay(history[:cut])
    by_changes = apply(Membership(0, {}, {}), changes)
    by_list = apply(from_records(RecordSet(len(early), records), apply(Membership(0, {}, {}), early)), changes)
    assert by_list == by_changes


@given(history=HISTORY, own=SUBNET)
def test_peers_never_overlap_each_other_or_us(history: list[tuple[IPv4Network, bytes | None]], own: IPv4Network) -> None:
    _, records = replay(history)
    result = view(from_records(RecordSet(99, records)), CONFIG, Subnets(own), "udp")
    ranges = [own, *(each.subnets.ipv4 for each in result.peers if each.subnets.ipv4)]
    assert not any(a.overlaps(b) for at, a in enumerate(ranges) for b in ranges[:at])
    accounted = {key_of(each.subnets) for each in result.peers} | set(reasons(result)) | {key_of(Subnets(own))}
    assert accounted >= {item.key for item in records}


def test_one_change_among_sixty_five_thousand_leases_costs_a_copy() -> None:
    value = encode_attributes(NodeAttributes(IPv4Address("192.0.2.2")))
    keys = [f"subnets/10.{at >> 8}.{at & 255}.0-24" for at in range(65536)]
    members = from_records(RecordSet(9, tuple(Record(key, value, 5, 5, 7) for key in keys)))
    begin = time.process_time()
    for revision in range(10, 20):
        members = apply(members, [RecordChange(revision, keys[revision], None)])
    assert time.process_time() - begin < 0.5 and len(members.leases) == 65526


def test_a_public_ip_inside_a_leased_subnet_is_refused() -> None:
    """Packets to it would be routed into the tunnel again, and so on without end."""
    looping = record("10.5.50.0/24", "10.5.50.1", 5)
    sound = record("10.5.51.0/24", "192.0.2.51", 6)
    seen = view(from_records(RecordSet(9, (looping, sound))), CONFIG, None)
    assert [str(peer.subnets) for peer in seen.peers] == ["10.5.51.0/24"]
    assert "lies in a leased subnet" in seen.refusals[0].reason
