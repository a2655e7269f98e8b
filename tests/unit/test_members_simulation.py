"""Everybody's view of everybody under virtual time: lost, late and repeated events, routes that cannot be set, an etcd that forgets.

A failing example is printed with its seed and its script, and runs the same way again.
"""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flanpy.core.grace import Grace
from tests.support.leasing_simulation import Node
from tests.support.members_simulation import Entry, MembersSimulation
from tests.support.networks import network
from tests.unit.test_leasing_simulation import act

SMALL = network("10.5.0.0/24", 27)  # seven subnets can be leased
FOR_EVER_S = 1e9
LOSS_S = 40.0
OF_ETCD = ("away", "back", "wipe", "empty", "backup", "restore", "compact", "short")
OF_NODES = ("pause", "resume", "restart", "cut", "join", "delete", "flush", "long", "ttl")
Script = list[tuple[str, int]]


def scripts(*actions: str) -> st.SearchStrategy[Script]:
    return st.lists(st.tuples(st.sampled_from(actions), st.integers(0, 6)), max_size=20)


def play(simulation: MembersSimulation, script: Script) -> None:
    for action, choice in script:
        match action:
            case "backup":
                simulation.keep_backup()
            case "restore":
                simulation.restore()
            case "compact":
                simulation.server.compact()
            case "empty":
                with simulation.server.changed:
                    simulation.server._remove(sorted(simulation.server._records))
            case "flush":
                simulation.flush(simulation.nodes[choice % len(simulation.nodes)])
            case _:
                act(simulation, action, choice)
        simulation.advance(0.5)


def begin(seed: int, nodes: int, rule: Grace, lose: float) -> MembersSimulation:
    simulation = MembersSimulation(SMALL, seed, rule, lose=lose)
    for number in range(nodes):
        simulation.add(f"node-{number}", f"192.0.2.{number + 1}")
    return simulation


def settled(simulation: MembersSimulation) -> bool:
    kernels = {node.name: simulation.minds[node.name].kernel for node in simulation.nodes}
    return all(node.held for node in simulation.nodes) and kernels == {
        node.name: simulation.routes_to_others(node) for node in simulation.nodes
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(2, 6),
    lose=st.sampled_from([0.0, 0.1, 0.4]),
    rule=st.sampled_from([Grace(), Grace(0, LOSS_S), Grace(20, LOSS_S)]),
    script=scripts(*OF_ETCD, *OF_NODES),
)
def test_whatever_happens_every_kernel_ends_with_a_route_to_every_other_node_and_no_other(
    seed: int, nodes: int, lose: float, rule: Grace, script: Script
) -> None:
    simulation = begin(seed, nodes, rule, lose)
    simulation.advance(5.0)
    play(simulation, script)
    simulation.lose = simulation.fail = 0.0
    simulation.server.set_unavailable(False)
    for node in simulation.nodes:
        node.cut = False
        simulation.resume(node)
    simulation.advance(200.0 + LOSS_S)
    assert settled(simulation), [(node.name, node.held, simulation.minds[node.name].kernel) for node in simulation.nodes]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(2, 6),
    lose=st.sampled_from([0.0, 0.1, 0.4]),
    script=scripts(*OF_ETCD),
)
@example(seed=1, nodes=4, lose=0.0, script=[("backup", 0), ("short", 0), ("wipe", 0), ("short", 0), ("restore", 0)])
def test_whatever_becomes_of_etcd_no_route_to_a_living_node_goes(seed: int, nodes: int, lose: float, script: Script) -> None:
    simulation = begin(seed, nodes, Grace(FOR_EVER_S, FOR_EVER_S), lose=0.0)
    simulation.fail = 0.0
    simulation.advance_until(lambda: settled(simulation), 60.0)
    simulation.keep_backup()
    held = {node.name: node.held for node in simulation.nodes}

    def no_route_goes(node: Node, before: frozenset[Entry], after: frozenset[Entry]) -> None:
        gone = before - after
        assert not gone & simulation.routes_to_others(node), f"{node.name} has dropped {gone} at {simulation.now_s:.1f} s"

    simulation.on_pass, simulation.lose = no_route_goes, lose
    play(simulation, script)
    simulation.lose = 0.0
    simulation.server.set_unavailable(False)
    simulation.advance(200.0)
    assert {node.name: node.held for node in simulation.nodes} == held, "everybody registers the subnet again that its pods use"
    assert settled(simulation)


def test_without_a_grace_time_a_wiped_etcd_does_take_routes_away() -> None:
    """The assert above can fail."""
    simulation = begin(3, 4, Grace(), 0.0)
    simulation.fail = 0.0
    simulation.advance_until(lambda: settled(simulation), 60.0)
    dropped: list[Entry] = []
    simulation.on_pass = lambda node, before, after: dropped.extend(before - after)
    simulation.wipe()
    simulation.advance(20.0)
    assert dropped
