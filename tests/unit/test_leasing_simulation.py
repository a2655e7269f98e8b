"""The own lease under virtual time: many nodes, lost and late answers, pauses, restarts, a store that goes away or loses all."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.leasing_simulation import Simulation
from tests.support.networks import network

SMALL = network("10.5.0.0/24", 27)  # seven subnets can be leased

ACTION = st.sampled_from(
    ["pause", "resume", "restart", "reboot", "cut", "join", "away", "back", "wipe", "delete", "short", "long", "ttl"]
)


def act(simulation: Simulation, action: str, choice: int) -> None:
    node = simulation.nodes[choice % len(simulation.nodes)]
    match action:
        case "pause" | "cut" | "join":
            node.paused, node.cut = node.paused or action == "pause", action == "cut" or (node.cut and action != "join")
        case "resume":
            simulation.resume(node)
        case "restart":
            simulation.start(node)
        case "reboot":
            simulation.reboot(node)
        case "away" | "back":
            simulation.server.set_unavailable(action == "away")
        case "wipe":
            simulation.wipe()
        case "delete":
            simulation.delete_lease(node)
        case _:
            simulation.advance({"short": 2.0, "long": 25.0, "ttl": 70.0}[action])


def heal(simulation: Simulation) -> None:
    simulation.lose = 0.0
    simulation.server.set_unavailable(False)
    for node in simulation.nodes:
        node.cut = False
        simulation.resume(node)
    simulation.advance(200.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(2, 7),
    lose=st.sampled_from([0.0, 0.1, 0.4]),
    script=st.lists(st.tuples(ACTION, st.integers(0, 6)), max_size=25),
)
def test_whatever_happens_no_subnet_has_two_holders_and_everybody_ends_with_one(
    seed: int, nodes: int, lose: float, script: list[tuple[str, int]]
) -> None:
    simulation = Simulation(SMALL, seed, delay_s=0.3, lose=lose)
    for number in range(nodes):
        simulation.add(f"node-{number}", f"192.0.2.{number + 1}")
    simulation.advance(5.0)
    for action, choice in script:
        act(simulation, action, choice)
        simulation.advance(0.5)
    heal(simulation)
    held = [node.held for node in simulation.nodes]
    assert None not in held and len(set(held)) == nodes, [(node.name, node.held, node.state.problem) for node in simulation.nodes]
    assert [node.state.problem for node in simulation.nodes] == [None] * nodes
    assert {node.name: node.held for node in simulation.nodes} == simulation.holders_in_store()
