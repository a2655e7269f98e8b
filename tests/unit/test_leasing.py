"""The own lease step by step: which effect follows which event, and the stories of flannel's shortcomings, told with two nodes."""

from collections.abc import Set
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanpy.core import leasing
from flanpy.core.codec import decode_attributes, encode_attributes, key_of
from flanpy.core.lease_moves import CONTEST_S
from flanpy.model import FlanpyInfo, Lease, NodeAttributes, Record, RecordChange, RecordSet, Subnets
from tests.support.leasing_simulation import Simulation
from tests.support.networks import network

CONFIG = network("10.5.0.0/16")
ADDRESS = IPv4Address("192.0.2.1")


def subnets(text: str) -> Subnets:
    return Subnets(IPv4Network(text))


def value(node: str | None, address: str = "192.0.2.1", features: Set[str] = frozenset()) -> bytes:
    return encode_attributes(NodeAttributes(IPv4Address(address), flanpy=FlanpyInfo(node, frozenset(features)) if node else None))


def record(subnet: str, content: bytes, revision: int = 5, lease_id: int = 9, created: int | None = None) -> Record:
    return Record(key_of(subnets(subnet)), content, revision if created is None else created, revision, lease_id)


def identity(previous: str | None = None, node: str = "me") -> leasing.Identity:
    return leasing.Identity(node, NodeAttributes(ADDRESS), subnets(previous) if previous else None, pick=lambda count: 0)


def listed(*records: Record, revision: int = 20) -> leasing.Listed:
    return leasing.Listed(RecordSet(revision, records))


def begin(*records: Record, previous: str | None = None) -> leasing.Step:
    state, effects = leasing.start(identity(previous), CONFIG, 0.0)
    assert effects == (leasing.List(),)
    return leasing.step(state, listed(*records), 0.0)


def store_effects(effects: tuple[leasing.Effect, ...]) -> list[leasing.Effect]:
    return [effect for effect in effects if not isinstance(effect, leasing.Say)]


def said(effects: tuple[leasing.Effect, ...]) -> list[str]:
    return [effect.event for effect in effects if isinstance(effect, leasing.Say)]


def holding(subnet: str = "10.5.7.0/24", now_s: float = 0.0, lease_id: int = 9) -> leasing.LeasingState:
    """A state that holds a subnet since its registration at revision 30."""
    state, effects = begin(previous=subnet)
    (create,) = effects
    assert isinstance(create, leasing.Create)
    state, _ = leasing.step(state, leasing.Created(Record(create.key, create.value, 30, 30, lease_id)), now_s)
    assert state.held is not None and state.held.subnets == subnets(subnet)
    return state


# ------------------------------------------------------------------------------------------------ acquiring


def test_an_empty_cluster_gives_the_first_subnet_that_is_picked() -> None:
    _, effects = begin()
    assert effects == (leasing.Create("subnets/10.5.1.0-24", value("me"), 86400),)


def test_the_previous_subnet_is_taken_again_when_it_is_free() -> None:
    _, effects = begin(record("10.5.1.0/24", value("other", "192.0.2.9")), previous="10.5.7.0/24")
    assert effects == (leasing.Create("subnets/10.5.7.0-24", value("me"), 86400),)


def test_the_previous_subnet_is_not_taken_when_somebody_has_it() -> None:
    _, effects = begin(record("10.5.7.0/24", value("other", "192.0.2.9")), previous="10.5.7.0/24")
    assert effects == (leasing.Create("subnets/10.5.1.0-24", value("me"), 86400),)


def test_a_previous_subnet_of_another_network_is_ignored() -> None:
    _, effects = begin(previous="10.99.7.0/24")
    assert effects == (leasing.Create("subnets/10.5.1.0-24", value("me"), 86400),)


def test_our_lease_of_an_earlier_run_is_adopted_by_compare_and_swap() -> None:
    _, effects = begin(record("10.5.9.0/24", value("me"), 12), previous="10.5.7.0/24")
    assert effects == (leasing.Replace("subnets/10.5.9.0-24", value("me"), 12, 86400),)


def test_the_lease_of_flanneld_on_this_machine_is_adopted_in_place() -> None:
    _, effects = begin(record("10.5.9.0/24", value(None), 12))
    assert effects == (leasing.Replace("subnets/10.5.9.0-24", value("me"), 12, 86400),)


def test_our_node_id_goes_before_our_address() -> None:
    _, effects = begin(record("10.5.3.0/24", value(None), 11), record("10.5.9.0/24", value("me"), 12))
    assert effects == (leasing.Replace("subnets/10.5.9.0-24", value("me"), 12, 86400),)


def test_two_nodes_behind_one_address_do_not_share_a_subnet() -> None:
    _, effects = begin(record("10.5.1.0/24", value("twin-behind-nat"), 11), previous="10.5.1.0/24")
    assert effects == (leasing.Create("subnets/10.5.2.0-24", value("me"), 86400),)


def test_a_reservation_is_used_and_stays_one() -> None:
    state, effects = begin(record("10.5.9.0/24", value(None), 12, lease_id=0), record("10.5.3.0/24", value(None), 11))
    (write,) = effects
    assert write == leasing.Replace("subnets/10.5.9.0-24", value("me"), 12, 0)
    state, effects = leasing.step(state, leasing.Replaced(record("10.5.9.0/24", value("me"), 13, 0, 12)), 1.0)
    assert store_effects(effects) == [] and leasing.deadline(state) is None and state.problem is None


def test_a_range_whose_value_does_not_parse_is_not_taken() -> None:
    _, effects = begin(record("10.5.1.0/24", b"\xff{"))
    assert effects == (leasing.Create("subnets/10.5.2.0-24", value("me"), 86400),)


def test_a_lost_race_lists_again_after_a_short_while_and_takes_another() -> None:
    state, _ = begin()
    state, effects = leasing.step(state, leasing.Created(None), 1.0)
    assert said(effects) == ["lease_race_lost"] and store_effects(effects) == []
    at = leasing.deadline(state)
    assert at is not None and 1.0 < at < 1.1
    state, effects = leasing.step(state, leasing.Tick(), at)
    assert effects == (leasing.List(),)
    _, effects = leasing.step(state, listed(record("10.5.1.0/24", value("faster", "192.0.2.9"))), at)
    assert effects == (leasing.Create("subnets/10.5.2.0-24", value("me"), 86400),)


def test_an_exhausted_pool_is_said_once_and_asked_again_when_a_lease_goes() -> None:
    config = network("10.5.0.0/28", 30)
    full = [record(f"10.5.0.{4 * number}/30", value(f"n{number}", f"192.0.2.{10 + number}")) for number in range(1, 4)]
    state, _ = leasing.start(identity(), config, 0.0)
    state, effects = leasing.step(state, listed(*full), 0.0)
    assert said(effects) == ["pool_exhausted"] and "no free /30 from 10.5.0.4 to 10.5.0.12" in str(state.problem)
    state, effects = leasing.step(state, leasing.Tick(), 40.0)
    state, effects = leasing.step(state, listed(*full), 40.0)
    assert effects == ()
    state, _ = leasing.step(state, leasing.Changed((RecordChange(21, full[1].key, None),)), 40.0)
    at = leasing.deadline(state)
    assert at is not None and at <= 41.0
    state, _ = leasing.step(state, leasing.Tick(), at)
    _, effects = leasing.step(state, listed(full[0], full[2]), at)
    assert effects == (leasing.Create("subnets/10.5.0.8-30", value("me"), 86400),)


# ------------------------------------------------------------------------------------------------ holding


def test_the_lease_is_renewed_at_expiry_less_the_margin_by_compare_and_swap() -> None:
    state = holding()
    assert leasing.deadline(state) == 86400 - 3600
    assert leasing.step(state, leasing.Tick(), 82799.0) == (state, ())
    state, effects = leasing.step(state, leasing.Tick(), 82800.0)
    assert effects == (leasing.Replace("subnets/10.5.7.0-24", value("me"), 30, 86400),)
    state, effects = leasing.step(state, leasing.Replaced(record("10.5.7.0/24", value("me"), 44, 10, 30)), 82801.0)
    assert said(effects) == ["lease_renewed"] and leasing.deadline(state) == 82800 + 82800


def test_our_own_write_coming_back_through_the_watch_is_no_news() -> None:
    state = holding()
    echo = record("10.5.7.0/24", value("me"), 30)
    assert leasing.step(state, leasing.Changed((RecordChange(30, echo.key, echo),)), 1.0) == (state, ())


def test_the_store_being_away_keeps_the_lease_and_backs_off() -> None:
    state, _ = leasing.step(holding(), leasing.Tick(), 82800.0)
    waits = []
    for now_s in (82805.0, 82810.0, 82820.0, 82830.0, 82840.0, 82850.0):
        state, effects = leasing.step(state, leasing.Failed("etcd: no leader"), now_s)
        assert state.held is not None and "10.5.7.0/24 stays in use" in str(state.problem)
        at = leasing.deadline(state)
        assert at is not None
        waits.append(at - now_s)
        state, effects = leasing.step(state, leasing.Tick(), at)
        assert len(store_effects(effects)) == 1
    assert waits == sorted(waits) and 0.1 <= waits[0] < 0.3 and waits[-1] <= 3.0


def test_a_lease_stays_held_beyond_its_expiry_while_the_store_is_away() -> None:
    state, _ = leasing.step(holding(), leasing.Tick(), 82800.0)
    state, _ = leasing.step(state, leasing.Failed("timed out"), 200000.0)
    assert state.held is not None


def test_a_node_paused_past_its_ttl_never_overwrites_the_next_owner_and_takes_another_subnet() -> None:
    state, (write,) = leasing.step(holding(), leasing.Tick(), 500000.0)
    assert isinstance(write, leasing.Replace) and write.expected_mod_revision == 30
    state, effects = leasing.step(state, leasing.Replaced(None), 500000.1)
    assert effects == (leasing.List(),)
    theirs = record("10.5.7.0/24", value("heir", "192.0.2.9"), 50)
    state, effects = leasing.step(state, listed(theirs, revision=50), 500000.2)
    assert state.held is None and said(effects) == ["lease_lost"]
    assert "10.5.7.0/24 is lost: node heir has it" in effects[0].message  # type: ignore[union-attr]
    assert store_effects(effects) == [leasing.List()]
    state, effects = leasing.step(state, listed(theirs, revision=50), 500000.3)
    assert effects == (leasing.Create("subnets/10.5.1.0-24", value("me"), 86400),)


def test_a_key_deleted_by_hand_is_registered_again_at_once() -> None:
    state, effects = leasing.step(holding(), leasing.Changed((RecordChange(40, "subnets/10.5.7.0-24", None),)), 1.0)
    assert said(effects) == ["lease_gone"] and store_effects(effects) == [leasing.List()] and state.held is not None
    state, effects = leasing.step(state, listed(revision=40), 1.1)
    assert effects == (leasing.Create("subnets/10.5.7.0-24", value("me"), 86400),) and state.held is not None


def test_a_key_that_is_deleted_again_and_again_is_not_fought_for_without_pause() -> None:
    gone = leasing.Changed((RecordChange(40, "subnets/10.5.7.0-24", None),))
    state, _ = leasing.step(holding(), gone, 1.0)
    state, _ = leasing.step(state, listed(revision=40), 1.1)
    state, _ = leasing.step(state, leasing.Created(record("10.5.7.0/24", value("me"), 41)), 1.2)
    state, effects = leasing.step(state, leasing.Changed((RecordChange(42, "subnets/10.5.7.0-24", None),)), 2.0)
    assert store_effects(effects) == []
    at = leasing.deadline(state)
    assert at is not None and 7.0 <= at <= 12.0


def test_a_deletion_seen_while_a_renewal_is_under_way_is_not_forgotten() -> None:
    state, _ = leasing.step(holding(), leasing.Tick(), 82800.0)
    state, effects = leasing.step(state, leasing.Changed((RecordChange(50, "subnets/10.5.7.0-24", None),)), 82800.1)
    assert effects == ()
    _, effects = leasing.step(state, leasing.Replaced(record("10.5.7.0/24", value("me"), 45, 10, 30)), 82800.2)
    assert said(effects) == ["lease_renewed", "lease_gone"] and store_effects(effects) == [leasing.List()]


def test_a_wiped_store_gets_the_same_subnet_again() -> None:
    state, effects = leasing.step(holding(), listed(revision=1), 1.0)
    assert effects == (leasing.List(),)
    state, effects = leasing.step(state, listed(revision=1), 1.1)
    assert effects == (leasing.Create("subnets/10.5.7.0-24", value("me"), 86400),) and state.held is not None


def test_another_address_is_written_to_the_lease_at_once() -> None:
    attributes = NodeAttributes(IPv4Address("198.51.100.7"))
    state, effects = leasing.step(holding(), leasing.AttributesChanged(attributes), 1.0)
    assert effects == (leasing.Replace("subnets/10.5.7.0-24", value("me", "198.51.100.7"), 30, 86400),)
    state, effects = leasing.step(state, leasing.Replaced(record("10.5.7.0/24", value("me", "198.51.100.7"), 31, 9, 30)), 1.1)
    assert store_effects(effects) == [] and state.problem is None


def test_an_address_that_changes_while_the_lease_is_being_created_is_written_afterwards() -> None:
    state, (create,) = begin()
    assert isinstance(create, leasing.Create)
    state, effects = leasing.step(state, leasing.AttributesChanged(NodeAttributes(IPv4Address("198.51.100.7"))), 0.1)
    assert effects == ()
    _, effects = leasing.step(state, leasing.Created(Record(create.key, create.value, 30, 30, 9)), 0.2)
    assert store_effects(effects) == [leasing.Replace(create.key, value("me", "198.51.100.7"), 30, 86400)]


def test_a_subnet_that_no_longer_fits_is_given_up_once_there_is_another() -> None:
    state, effects = leasing.step(holding(), leasing.ConfigChanged(network("10.5.0.0/16", 25)), 1.0)
    assert effects == (leasing.List(),)
    ours = record("10.5.7.0/24", value("me"), 30)
    state, (create,) = leasing.step(state, listed(ours, revision=30), 1.1)
    assert isinstance(create, leasing.Create) and create.key == "subnets/10.5.0.128-25"
    assert state.held is not None and state.held.subnets == subnets("10.5.7.0/24")
    state, effects = leasing.step(state, leasing.Created(Record(create.key, create.value, 31, 31, 10)), 1.2)
    assert state.held.subnets == subnets("10.5.0.128/25")
    assert store_effects(effects) == [leasing.Delete("subnets/10.5.7.0-24", 30)]
    state, effects = leasing.step(state, leasing.Deleted(True), 1.3)
    assert effects == () and leasing.deadline(state) is not None


def test_garbage_over_our_key_is_written_back_by_compare_and_swap() -> None:
    garbage = record("10.5.7.0/24", b"$(reboot)", 33, 0, 30)
    _, effects = leasing.step(holding(), leasing.Changed((RecordChange(33, garbage.key, garbage),)), 100.0)
    assert said(effects) == ["lease_overwritten"]
    assert store_effects(effects) == [leasing.Replace(garbage.key, value("me"), 33, 86400)], "it stays a lease that expires"


def test_a_release_gives_the_lease_back_at_our_revision_and_then_rests() -> None:
    state, effects = leasing.step(holding(), leasing.Release(), 1.0)
    said_goodbye = value("me", features={"leaving"})
    assert effects == (leasing.Replace("subnets/10.5.7.0-24", said_goodbye, 30, 60),)
    written = record("10.5.7.0/24", said_goodbye, 31, 10, 30)
    state, effects = leasing.step(state, leasing.Replaced(written), 1.05)
    assert effects == (leasing.Delete("subnets/10.5.7.0-24", 31),)
    state, effects = leasing.step(state, leasing.Deleted(True), 1.1)
    assert said(effects) == ["lease_released"] and state.held is None and leasing.deadline(state) is None
    gone = leasing.Changed((RecordChange(32, "subnets/10.5.7.0-24", None),))
    assert leasing.step(state, gone, 1.2) == (state, ())


def test_a_release_leaves_a_reservation_alone() -> None:
    state, effects = leasing.step(holding(lease_id=0), leasing.Release(), 1.0)
    assert effects == () and leasing.deadline(state) is None


@pytest.mark.parametrize("event", [leasing.Created(None), leasing.Replaced(None), leasing.Deleted(True), leasing.Failed("late")])
def test_a_result_that_nobody_waits_for_changes_nothing(event: leasing.Event) -> None:
    state = holding()
    assert leasing.step(state, event, 1.0) == (state, ())


# ------------------------------------------------------------------------------------------------ one identity twice


def test_after_an_address_change_while_the_agent_was_down_the_subnet_of_subnet_env_is_ours_at_once() -> None:
    _, effects = begin(record("10.5.9.0/24", value("me", "198.51.100.7"), 12), previous="10.5.9.0/24")
    assert effects == (leasing.Replace("subnets/10.5.9.0-24", value("me"), 12, 86400),)


def test_a_lease_with_our_id_and_another_address_is_asked_before_it_is_taken() -> None:
    state, (mark,) = begin(record("10.5.9.0/24", value("me", "198.51.100.7"), 12))
    assert isinstance(mark, leasing.Replace) and mark.expected_mod_revision == 12
    marked = NodeAttributes(IPv4Address("198.51.100.7"), flanpy=FlanpyInfo("me", frozenset({"contested"})))
    assert decode_attributes(mark.value) == marked
    state, effects = leasing.step(state, leasing.Replaced(record("10.5.9.0/24", mark.value, 21, 9, 12)), 1.0)
    assert said(effects) == ["node_id_in_doubt"] and state.held is None and leasing.deadline(state) == 1.0 + CONTEST_S
    state, effects = leasing.step(state, leasing.Tick(), 11.0)
    assert effects == (leasing.Replace("subnets/10.5.9.0-24", value("me"), 21, 86400),)
    state, effects = leasing.step(state, leasing.Replaced(record("10.5.9.0/24", value("me"), 22, 9, 12)), 11.1)
    assert state.held is not None and said(effects) == ["lease_claimed"]


def test_a_clone_is_refused_and_the_first_keeps_its_subnet_all_the_time() -> None:
    simulation = Simulation(CONFIG)
    first = simulation.add("first", "192.0.2.1", "cloned")
    simulation.advance(2.0)
    second = simulation.add("second", "192.0.2.2", "cloned")
    for _ in range(400):
        simulation.advance(1.0)
        assert first.held is not None and second.held is None
    assert second.state is not None and "another living node has our node id cloned" in str(second.state.problem)
    assert "identity_conflict" in [say.event for say in second.said]
    assert "node_id_contested" in [say.event for say in first.said]


def test_the_clone_gets_a_subnet_when_the_first_is_gone_for_good() -> None:
    simulation = Simulation(CONFIG)
    first = simulation.add("first", "192.0.2.1", "cloned")
    simulation.advance(2.0)
    second = simulation.add("second", "192.0.2.2", "cloned")
    simulation.advance(30.0)
    assert second.held is None
    simulation.stop(first)
    simulation.advance_until(lambda: second.held is not None, 1300.0)


def test_a_clone_behind_the_same_address_yields_within_a_second() -> None:
    simulation = Simulation(CONFIG)
    first = simulation.add("first", "192.0.2.1", "cloned")
    simulation.advance(30.0)
    held = first.held
    second = simulation.add("second", "192.0.2.1", "cloned")
    simulation.advance(3.0)
    assert (first.held, second.held) == (held, None)
    for _ in range(300):
        simulation.advance(1.0)
        assert (first.held, second.held) == (held, None)


def test_a_clone_made_of_the_running_machine_yields_too() -> None:
    simulation = Simulation(CONFIG)
    first = simulation.add("first", "192.0.2.1", "cloned")
    simulation.advance(30.0)
    held = first.held
    second = simulation.add("second", "192.0.2.2", "cloned")
    second.subnet_env = held
    simulation.start(second)
    simulation.advance(5.0)
    assert (first.held, second.held) == (held, None)


def test_a_machine_that_was_rebooted_with_a_new_address_gets_its_subnet_back() -> None:
    simulation = Simulation(CONFIG)
    node = simulation.add("node", "192.0.2.1")
    simulation.advance(2.0)
    held = node.held
    node.address = IPv4Address("198.51.100.7")
    simulation.reboot(node)
    simulation.advance(CONTEST_S + 3.0)
    assert node.held == held and node.state is not None and node.state.problem is None


# ------------------------------------------------------------------------------------------------ many


def test_nodes_that_all_join_at_once_get_different_subnets_within_ten_seconds() -> None:
    simulation = Simulation(network("10.0.0.0/8"), delay_s=0.05)
    for number in range(150):
        simulation.add(f"node-{number}", str(IPv4Address("192.0.2.1") + number))
    simulation.advance(10.0)
    assert len({node.held for node in simulation.nodes} - {None}) == 150


def test_the_last_node_waits_for_a_subnet_and_gets_the_one_that_is_freed() -> None:
    simulation = Simulation(network("10.5.0.0/28", 30))
    nodes = [simulation.add(f"node-{number}", f"192.0.2.{number + 1}") for number in range(4)]
    simulation.advance(5.0)
    (waiting,) = [node for node in nodes if node.held is None]
    assert waiting.state is not None and "no free /30" in str(waiting.state.problem)
    leaver = next(node for node in nodes if node.held is not None)
    freed = leaver.held
    simulation._feed(leaver, leasing.Release())
    simulation.advance(4.0)
    assert waiting.held == freed


def test_a_lease_value_is_compared_whole_after_a_wipe() -> None:
    """The key of a faster node can have the very revision that ours had before the wipe."""
    theirs = record("10.5.7.0/24", value("heir", "192.0.2.9"), 30)
    state, _ = leasing.step(holding(), listed(theirs, revision=30), 1.0)
    state, effects = leasing.step(state, listed(theirs, revision=30), 1.1)
    assert state.held is None and said(effects) == ["lease_lost"]


def test_the_lease_of_the_state_is_what_stands_in_the_store() -> None:
    state = holding()
    attributes = replace(NodeAttributes(ADDRESS), flanpy=FlanpyInfo("me"))
    assert state.held == Lease(subnets("10.5.7.0/24"), attributes, 30, 30, 9)
