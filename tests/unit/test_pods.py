"""The pod registry's rules: hostile records refused one by one, who may claim an address, and what becomes of the backends' plans."""

from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy import backends
from flanpy.backends.moved import Moved, with_moved
from flanpy.core.attached import AttachedPod, parse_kept
from flanpy.core.membership import View
from flanpy.core.pod_claims import Claimant, DeletePod, WritePod, claim
from flanpy.core.pods import Pod, PodJudge, PodPlace, PodView, Registry, apply, decode_pod, encode_pod, from_records, pod_key
from flanpy.errors import CodecError
from flanpy.model import (
    FlanpyInfo,
    Hop,
    Lease,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Record,
    RecordChange,
    RecordSet,
    Route,
    StandIns,
    Subnets,
    TableEntry,
    WireguardLink,
)
from tests.support.backends import UPLINK, config

CONFIG = config("udp")
ME, OTHER = "me", "other"
WEB = Pod(ip_address("10.5.1.5"), ME, "shop", "web", "c1")


def lease(node: str, subnet: str, address: str, kind: str = "", data: str | None = None, etcd_lease_id: int = 7) -> Lease:
    attributes = NodeAttributes(IPv4Address(address), None, kind, data, flanpy=FlanpyInfo(node))
    return Lease(Subnets(IPv4Network(subnet)), attributes, 5, 5, etcd_lease_id)


OWN = lease(ME, "10.5.1.0/24", "192.0.2.1", etcd_lease_id=71)
THEIRS = lease(OTHER, "10.5.2.0/24", "192.0.2.2", etcd_lease_id=72)


def peer(item: Lease) -> Peer:
    return Peer(item.subnets, item.attributes, Hop(item.attributes.public_ip, 8285), item)


def judge(*others: Lease, config: NetworkConfig = CONFIG) -> PodJudge:
    return PodJudge(config, OWN, ME, View(tuple(map(peer, others or (THEIRS,))), (), ()), (IPv4Address("192.0.2.1"),))


def record(pod: Pod, revision: int = 10, etcd_lease_id: int = 72) -> Record:
    return Record(pod_key(pod.address), encode_pod(pod), revision, revision, etcd_lease_id)


def registry(*records: Record) -> Registry:
    return from_records(RecordSet(50, records))


def at(address: str, node: str = OTHER, name: str = "web") -> Pod:
    return Pod(ip_address(address), node, "shop", name, "c2")


def reasons(view: PodView) -> dict[str, str]:
    return {refusal.key: refusal.reason for refusal in view.refusals}


# ------------------------------------------------------------------------------------------------ records


def test_a_record_reads_as_it_was_written() -> None:
    assert encode_pod(WEB) == b'{"node":"me","namespace":"shop","name":"web","container":"c1"}'
    entry = decode_pod(record(WEB))
    assert (entry.pod, entry.mod_revision, entry.etcd_lease_id) == (WEB, 10, 72)


def test_a_record_of_a_later_version_may_say_more() -> None:
    value = b'{"node":"me","namespace":"","name":"","container":"c1","colour":"red"}'
    assert decode_pod(Record("pods/10.5.1.5", value, 1, 1)).pod == Pod(WEB.address, ME, "", "", "c1")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("pods/", b"{}", "key: '' is not one address"),
        ("pods/10.5.1.0/24", b"{}", "key: '10.5.1.0/24' is not one address"),
        ("pods/10.5.1.05", b"{}", "is not one address"),
        ("pods/fd00:0::5", b"{}", "is spelled differently from fd00::5"),
        ("pods/FD00::5", b"{}", "is spelled differently from fd00::5"),
        ("pods/fe80::1%eth0", b"{}", "key: 'fe80::1%eth0' has a zone"),
        ("pods/10.5.1.5", b"", "value: "),
        ("pods/10.5.1.5", b"[]", "value: not a JSON object"),
        ("pods/10.5.1.5", b'{"node":"a","node":"b","container":"c"}', "value: "),
        ("pods/10.5.1.5", b'{"container":"c"}', "node: None is not a name"),
        ("pods/10.5.1.5", b'{"node":"a b","container":"c"}', "node: 'a b' is not a name"),
        ("pods/10.5.1.5", b'{"node":"a"}', "container: None is not a name"),
        ("pods/10.5.1.5", b'{"node":"a","container":"../x"}', "container: '../x' is not a name"),
        ("pods/10.5.1.5", b'{"node":"a","container":"c","name":"\\u001b[2J"}', "name: "),
        ("pods/10.5.1.5", b'{"node":"a","container":"c","namespace":7}', "namespace: 7 is not a name"),
        ("pods/10.5.1.5", b'{"node":"a","container":"' + b"c" * 4096 + b'"}', "value: 4123 bytes, at most 4096"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(key: str, value: bytes, reason: str) -> None:
    with pytest.raises(CodecError) as refused:
        decode_pod(Record(key, value, 1, 1))
    assert reason in str(refused.value)


@given(st.binary(max_size=200), st.text(max_size=40))
def test_no_value_and_no_key_does_more_than_be_refused(value: bytes, key: str) -> None:
    found = registry(Record(f"pods/{key}", value, 1, 1), record(WEB))
    assert set(found.entries) >= {"pods/10.5.1.5"}
    assert len(found.entries) + len(found.refusals) >= 1


@given(st.integers(0, 199))
def test_every_prefix_of_a_good_value_is_refused(length: int) -> None:
    value = encode_pod(WEB)
    if length < len(value):
        with pytest.raises(CodecError):
            decode_pod(Record("pods/10.5.1.5", value[:length], 1, 1))


def test_changes_are_taken_once_and_in_any_overlap_with_the_listing() -> None:
    listed = registry(record(WEB, revision=40))
    old = RecordChange(45, "pods/10.5.1.5", None)
    put = RecordChange(60, "pods/10.5.1.5", record(replace(WEB, container="new"), revision=60))
    gone = RecordChange(61, "pods/10.5.1.5", None)
    assert apply(listed, (old,)) is listed
    assert apply(listed, (put,)).entries["pods/10.5.1.5"].pod.container == "new"
    assert apply(apply(listed, (put,)), (put,)) == apply(listed, (put,))
    assert apply(listed, (put, gone)) == Registry(50, {}, {}, {})
    assert apply(apply(listed, (put,)), (RecordChange(55, "pods/10.5.1.5", None),)) == apply(listed, (put,))


def test_a_value_that_has_become_bad_is_refused_and_forgotten_when_it_goes() -> None:
    bad = apply(registry(record(WEB, 40)), (RecordChange(60, "pods/10.5.1.5", Record("pods/10.5.1.5", b"x", 40, 60)),))
    assert (set(bad.entries), set(bad.refusals), bad.revisions) == (set(), {"pods/10.5.1.5"}, {"pods/10.5.1.5": 60})
    assert apply(bad, (RecordChange(61, "pods/10.5.1.5", None),)) == Registry(50, {}, {}, {})


# ------------------------------------------------------------------------------------------------ the judgement


def test_pods_are_by_subnet_unless_they_have_moved() -> None:
    at_home, moved, guest = at("10.5.2.9"), at("10.5.1.9"), Pod(ip_address("10.5.2.8"), ME, "shop", "back", "c")
    view = judge().view(registry(record(at_home), record(moved), record(guest, etcd_lease_id=71)))
    places = {str(place.entry.pod.address): (place.peer is None, place.moved) for place in view.places.values()}
    assert places == {"10.5.2.9": (False, False), "10.5.1.9": (False, True), "10.5.2.8": (True, True)}
    assert [str(place.entry.pod.address) for place in view.moved] == ["10.5.1.9"]
    assert view.refusals == ()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.6.0.5", "10.6.0.5 lies outside of Network 10.5.0.0/16"),
        ("fd05::5", "IPv6 is not enabled in the network config"),
        ("10.5.1.0", "belongs to the subnet itself"),
        ("10.5.1.1", "belongs to the subnet itself"),
        ("10.5.1.255", "belongs to the subnet itself"),
        ("10.5.77.0", "belongs to the subnet itself"),
        ("10.5.77.1", "belongs to the subnet itself"),
    ],
)
def test_no_entry_captures_what_is_no_pod_s(address: str, reason: str) -> None:
    view = judge().view(registry(record(at(address))))
    assert view.places == {}
    assert reason in reasons(view)[f"pods/{address}"]


def test_no_entry_captures_a_node_s_own_address() -> None:
    inside = lease(OTHER, "10.5.2.0/24", "10.5.9.9", etcd_lease_id=72)
    view = judge(inside).view(registry(record(at("10.5.9.9"))))
    assert reasons(view) == {"pods/10.5.9.9": "10.5.9.9 is the address of a node, not of a pod"}


def test_an_entry_of_an_unknown_node_is_stale() -> None:
    assert "node ghost has no lease" in reasons(judge().view(registry(record(at("10.5.2.9", "ghost")))))["pods/10.5.2.9"]


def test_an_entry_that_hangs_on_another_lease_than_its_node_s_is_not_that_node_s_word() -> None:
    view = judge().view(registry(record(at("10.5.2.9"), etcd_lease_id=5)))
    assert "not bound to the etcd lease of node other" in reasons(view)["pods/10.5.2.9"]


def test_an_accepted_entry_stands_while_its_node_renews_its_lease() -> None:
    entries = registry(record(at("10.5.2.9")))
    before = judge().view(entries)
    renewed = judge(replace(THEIRS, etcd_lease_id=99))
    assert renewed.view(entries, before).places.keys() == {"pods/10.5.2.9"}
    assert renewed.view(entries).places == {}


def test_a_pod_that_vanishes_with_its_node_s_lease_is_kept_with_its_node() -> None:
    before = judge().view(registry(record(at("10.5.2.9"))))
    assert judge().view(registry(), before, [THEIRS]) == before
    assert judge().view(registry(), before).places == {}
    assert judge().view(registry(record(at("10.5.2.9", "ghost"))), before, [THEIRS]).places == {}


def test_the_entries_of_a_reservation_have_leases_of_their_own() -> None:
    assert judge(replace(THEIRS, etcd_lease_id=0)).view(registry(record(at("10.5.2.9"), etcd_lease_id=5))).refusals == ()


# ------------------------------------------------------------------------------------------------ claims


def attached(address: str, name: str = "web", attachment: str = "c1@eth0") -> AttachedPod:
    return AttachedPod(ip_address(address), attachment, "c1", "shop", name, "cni0", "02:00:00:00:00:01")


WHO = Claimant(ME, 71)


def claimed(pods: list[AttachedPod], entries: Registry, who: Claimant = WHO) -> tuple[object, ...]:
    found = claim(pods, entries, judge().view(entries), judge(), who)
    return found.here, found.gone, found.effects, [refusal.reason for refusal in found.refusals]


def test_a_new_pod_is_written_and_stays_as_it_is() -> None:
    pod = attached("10.5.1.5")
    write = WritePod("pods/10.5.1.5", encode_pod(WEB), 0, 71, "c1@eth0")
    assert claimed([pod], registry()) == ((pod,), (), (write,), [])
    assert claimed([pod], registry(record(WEB, etcd_lease_id=71))) == ((pod,), (), (), [])


def test_our_entry_follows_our_lease_and_our_pod() -> None:
    pod = attached("10.5.1.5")
    again = WritePod("pods/10.5.1.5", encode_pod(WEB), 10, 71, "c1@eth0")
    assert claimed([pod], registry(record(WEB, etcd_lease_id=70)))[2] == (again,)
    assert claimed([pod], registry(record(replace(WEB, container="old"), etcd_lease_id=71)))[2] == (again,)


def test_what_is_no_longer_attached_is_deleted_and_nobody_else_s_is() -> None:
    entries = registry(record(WEB, etcd_lease_id=71), record(at("10.5.2.9")))
    assert claimed([], entries) == ((), (), (DeletePod("pods/10.5.1.5", 10),), [])
    assert claimed([], entries, replace(WHO, knows_all=False)) == ((), (), (), []), "what could not be read may still be attached"


def test_a_pod_that_comes_with_its_address_takes_it_over_once() -> None:
    pod, entries = attached("10.5.2.9"), registry(record(at("10.5.2.9")))
    mine = Pod(ip_address("10.5.2.9"), ME, "shop", "web", "c1")
    assert claimed([pod], entries) == ((pod,), (), (WritePod("pods/10.5.2.9", encode_pod(mine), 10, 71, "c1@eth0"),), [])
    once = replace(WHO, claimed=frozenset({"c1@eth0"}))
    assert claimed([pod], entries, once) == ((), (pod,), (), [])


def test_another_pod_does_not_get_an_address_that_somebody_has_registered() -> None:
    entries = registry(record(at("10.5.1.5")))
    reason = "pod shop/thief attached here: node other has registered it first, for pod shop/web"
    assert claimed([attached("10.5.1.5", "thief")], entries) == ((), (), (), [reason])


def test_a_stale_or_unreadable_entry_holds_no_address() -> None:
    pod = attached("10.5.1.5")
    for stale in (record(at("10.5.1.5", "ghost")), Record("pods/10.5.1.5", b"x", 3, 10)):
        assert claimed([pod], registry(stale))[2] == (WritePod("pods/10.5.1.5", encode_pod(WEB), 10, 71, "c1@eth0"),)


def test_an_address_that_cannot_be_a_pod_s_is_never_claimed() -> None:
    assert claimed([attached("10.5.1.1")], registry())[:3] == ((), (), ())
    assert claimed([attached("10.9.9.9")], registry())[:3] == ((), (), ())


def test_of_two_pods_with_one_address_on_one_node_one_has_it() -> None:
    first, second = attached("10.5.1.5", "a", "a@eth0"), attached("10.5.1.5", "b", "b@eth0")
    here, _, effects, refused = claimed([second, first], registry())
    assert here == (first,)
    assert len(effects) == 1  # type: ignore[arg-type]
    assert refused == ["pod shop/b attached here: attached twice on this node; a@eth0 has it"]


def test_both_addresses_of_a_pod_are_claimed() -> None:
    dual = config("vxlan", ipv6=True)
    own = replace(OWN, subnets=Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd05:0:0:1::/64")))
    judged = PodJudge(dual, own, ME, View((), (), ()))
    both = [attached("fd05:0:0:1::5"), attached("10.5.1.5")]
    found = claim(both, registry(), judged.view(registry()), judged, WHO)
    assert found.here == (both[1], both[0])
    assert [effect.key for effect in found.effects] == ["pods/10.5.1.5", "pods/fd05:0:0:1::5"]


def test_a_reservation_s_pods_get_leases_of_their_own_and_are_written_again_in_time() -> None:
    pod, who = attached("10.5.1.5"), Claimant(ME, 0)
    assert claimed([pod], registry(), who)[2] == (WritePod("pods/10.5.1.5", encode_pod(WEB), 0, 0, "c1@eth0"),)
    entries = registry(record(WEB, etcd_lease_id=5))
    assert claimed([pod], entries, who)[2] == ()
    due = replace(who, due=frozenset({"pods/10.5.1.5"}))
    assert claimed([pod], entries, due)[2] == (WritePod("pods/10.5.1.5", encode_pod(WEB), 10, 0, "c1@eth0"),)


# ------------------------------------------------------------------------------------------------ kept files

KEPT = (
    b'{"type": "bridge", "bridge": "br9", "flanpy": {"ifname": "eth0", "netns": "/x", "boot": "B", '
    b'"pod": {"namespace": "shop", "name": "web"}, "result": {'
    b'"interfaces": [{"name": "br9"}, {"name": "eth0", "mac": "02:AA:00:00:00:01"}], '
    b'"ips": [{"address": "10.5.1.5/24", "interface": 1}, {"address": "fd05::5/64"}]}}}'
)


def test_a_kept_file_names_the_pod_and_its_addresses() -> None:
    both = ("id@eth0", "id", "shop", "web", "br9")
    assert parse_kept("id", KEPT, "B") == (
        AttachedPod(ip_address("10.5.1.5"), *both, "02:aa:00:00:00:01"),
        AttachedPod(ip_address("fd05::5"), *both, ""),
    )


def test_what_another_boot_or_flannel_s_plugin_has_kept_is_no_pod_of_ours() -> None:
    assert parse_kept("id", KEPT, "another") == ()
    assert parse_kept("id", b'{"type": "bridge"}', "B") == ()
    assert parse_kept("id", KEPT.replace(b'"result": {', b'"other": {'), "B") == ()


def test_a_pod_without_a_bridge_or_a_usable_name_is_known_by_its_container() -> None:
    text = KEPT.replace(b'"bridge", "bridge": "br9"', b'"ptp"').replace(b'"web"', b'"\\u001b"')
    assert {(pod.name, pod.bridge) for pod in parse_kept("id", text, "B")} == {("", "")}


@pytest.mark.parametrize("text", [b"", b"{", KEPT.replace(b"10.5.1.5/24", b"x"), KEPT.replace(b'"10.5.1.5/24"', b"5")])
def test_a_kept_file_that_cannot_be_read_is_refused(text: bytes) -> None:
    with pytest.raises(CodecError):
        parse_kept("id", text, "B")


@given(st.binary(max_size=100))
def test_no_kept_file_does_more_than_be_refused(text: bytes) -> None:
    with suppress(CodecError):
        parse_kept("id", text, "B")


# ------------------------------------------------------------------------------------------------ the backends


def away(address: str, item: Lease) -> PodPlace:
    entries = registry(record(at(address), etcd_lease_id=item.etcd_lease_id))
    return judge(item).view(entries).places[pod_key(ip_address(address))]


def planned(kind: str, item: Lease, moved: Moved, own: Lease = OWN):  # type: ignore[no-untyped-def]
    cluster = config(kind)
    plan = backends.find(kind).plan(cluster, own, View((peer(item),), (), ()), UPLINK, 1)
    return plan, with_moved(plan, moved, own.subnets, cluster)


STAND_INS = StandIns(frozenset(), frozenset(), frozenset(), (ip_network("10.5.1.0/24"),), (ip_network("10.5.0.0/16"),))


def test_without_a_registry_no_plan_changes() -> None:
    plan, moved = planned("udp", THEIRS, Moved())
    assert moved is plan


def test_udp_gets_a_table_entry_and_a_route_only_for_what_was_ours() -> None:
    plan, moved = planned("udp", THEIRS, Moved((away("10.5.1.9", THEIRS), away("10.5.7.9", THEIRS)), (), looked_after=True))
    hop = peer(THEIRS).hop
    entries = (TableEntry(ip_network("10.5.1.9/32"), hop), TableEntry(ip_network("10.5.7.9/32"), hop))
    assert moved == replace(
        plan,
        table=replace(plan.table, entries=(*plan.table.entries, *entries)),
        routes=plan.routes | {Route(ip_network("10.5.1.9/32"), "flannel0")},
        stand_ins=replace(STAND_INS, away=frozenset({ip_address("10.5.1.9")})),
    )


def test_a_guest_gets_a_route_to_the_bridge_which_answers_for_its_gateway() -> None:
    pod = attached("10.5.2.9")
    plan, moved = planned("udp", THEIRS, Moved((), (pod,), (), looked_after=True))
    assert moved == replace(
        plan,
        table=replace(plan.table, local=(*plan.table.local, ip_network("10.5.2.9/32"))),
        routes=plan.routes | {Route(ip_network("10.5.2.9/32"), "cni0")},
        stand_ins=replace(STAND_INS, gateways=frozenset({("cni0", ip_address("10.5.2.1"))})),
    )


@pytest.mark.parametrize("kind", ["vxlan", "host-gw", "ipip"])
def test_kernel_backends_lead_a_pod_as_they_lead_its_node_s_subnet(kind: str) -> None:
    macs = {ME: '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}', OTHER: '{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}'}
    own = replace(OWN, attributes=replace(OWN.attributes, backend_type=kind, backend_data=macs[ME] if kind == "vxlan" else None))
    item = lease(OTHER, "10.5.2.0/24", "192.0.2.2", kind, macs[OTHER] if kind == "vxlan" else None, 72)
    plan, moved = planned(kind, item, Moved((away("10.5.7.9", item),), (), looked_after=True), own)
    (route,) = (route for route in plan.routes if route.destination == ip_network("10.5.2.0/24"))
    assert moved == replace(
        plan, routes=plan.routes | {replace(route, destination=ip_network("10.5.7.9/32"))}, stand_ins=STAND_INS
    )


def test_wireguard_allows_a_pod_s_address_to_its_node() -> None:
    keys = {ME: '{"PublicKey":"' + "A" * 42 + 'E="}', OTHER: '{"PublicKey":"' + "B" * 42 + 'E="}'}
    own = replace(OWN, attributes=replace(OWN.attributes, backend_type="wireguard", backend_data=keys[ME]))
    item = lease(OTHER, "10.5.2.0/24", "192.0.2.2", "wireguard", keys[OTHER], 72)
    plan, moved = planned("wireguard", item, Moved((away("10.5.1.9", item),), (), looked_after=True), own)
    (link,) = moved.links
    assert isinstance(link, WireguardLink)
    assert [each.allowed for each in link.peers] == [(ip_network("10.5.2.0/24"), ip_network("10.5.1.9/32"))]
    assert moved.routes - plan.routes == {Route(ip_network("10.5.1.9/32"), "flannel-wg")}


def test_backends_without_routes_of_ours_get_none() -> None:
    plan, moved = planned("alloc", THEIRS, Moved((away("10.5.7.9", THEIRS),), (), looked_after=True))
    assert moved == replace(plan, stand_ins=STAND_INS)
