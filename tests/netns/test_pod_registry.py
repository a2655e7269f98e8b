"""The pod registry over real agents and the plugin: what is written, who believes it, and what becomes of it.

    etcd 172.31.9.254
──── underlay ──┬──────────────┬──────────────┬────
            host1          host2          host3          agents with --pod-registry
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_network

import pytest

from tests.support.clusters import eventually
from tests.support.pods import Nodes, three_nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with three_nodes(tmp_path_factory.mktemp("pods")) as made:
        yield made


@pytest.fixture
def web(nodes: Nodes) -> Iterator[str]:
    """The address of the pod shop/web on host1."""
    address = nodes.attach(1, "web", "web").address
    eventually(lambda: address in nodes.ways(3), 10, "web is registered")
    yield address
    nodes.detach(1, "web")
    eventually(lambda: address not in nodes.ways(3), 10, "web is gone")


def refusals(nodes: Nodes, host: int) -> dict[str, str]:
    return {refused["key"]: refused["reason"] for refused in nodes.pods(host)["refused"]}


def test_a_pod_is_registered_with_its_node_and_name_on_the_node_s_lease(nodes: Nodes, web: str) -> None:
    found, lease = nodes.cluster.get(f"pods/{web}"), nodes.cluster.get(nodes.cluster.key("host1"))
    assert found is not None
    assert lease is not None
    node = nodes.cluster.status("host1")["node"]
    assert json.loads(found["value"]) == {"node": node, "namespace": "shop", "name": "web", "container": "id-web"}
    assert found["lease"] == lease["lease"]
    assert [nodes.ways(host)[web] for host in (1, 2, 3)] == [("shop/web", way) for way in ("local", "subnet", "subnet")]


def test_the_table_and_the_status_say_it(nodes: Nodes, web: str) -> None:
    done = nodes.command(2, "pods")
    assert done.returncode == 0
    head, row = (line.split() for line in done.stdout.splitlines())
    node = nodes.cluster.status("host1")["node"]
    assert head == ["ADDRESS", "POD", "NODE", "NEXT", "HOP", "ROUTE"]
    assert row == [web, "shop/web", node[:8], "172.31.9.1:8285", "subnet"]
    assert nodes.cluster.status("host2")["pods"] == {"known": 1, "here": 0, "own_entries": 0, "refused": 0}


def test_what_came_and_went_while_the_agent_was_away_is_made_up_for(nodes: Nodes) -> None:
    gone = nodes.attach(1, "gone", "gone").address
    eventually(lambda: gone in nodes.ways(2), 10, "registered")
    nodes.cluster.lab.stop_agent("host1")
    try:
        nodes.detach(1, "gone")
        came = nodes.attach(1, "came", "came").address
    finally:
        nodes.cluster.lab.start_agents(["host1"])
    eventually(lambda: set(nodes.ways(2)) == {came}, 10, "the registry follows what is attached")
    nodes.detach(1, "came")
    eventually(lambda: nodes.ways(2) == {}, 10, "and that it is gone")


def test_a_node_that_loses_its_lease_registers_its_pods_again(nodes: Nodes, web: str) -> None:
    before = nodes.cluster.get(f"pods/{web}")
    assert before is not None
    nodes.cluster.etcd("lease/revoke", {"ID": before["lease"]})

    def again() -> bool:
        found = nodes.cluster.get(f"pods/{web}")
        return found is not None and found["lease"] not in ("0", before["lease"]) and web in nodes.ways(3)

    eventually(again, 15, "registered with the new lease")


def test_bad_and_stale_entries_are_refused_one_by_one_and_move_nothing(nodes: Nodes, web: str) -> None:
    mine, theirs = (ip_network(nodes.cluster.subnet(host)) for host in ("host3", "host1"))
    node1 = nodes.cluster.status("host1")["node"]
    free = str(theirs[200])
    good = json.dumps({"node": node1, "namespace": "", "name": "", "container": "c"})
    stranger = json.dumps({"node": "nobody", "namespace": "", "name": "", "container": "c"})
    bad = {
        f"pods/{mine[0]}": (good, "belongs to the subnet itself"),
        f"pods/{mine[1]}": (good, "belongs to the subnet itself"),
        f"pods/{theirs[-1]}": (good, "belongs to the subnet itself"),
        f"pods/{mine[0]}-24": (good, "not one address"),
        "pods/172.31.9.3": (good, "outside of Network"),
        "pods/10.244.0.9/../x": (good, "not one address"),
        "pods/010.244.9.9": (good, "not one address"),
        "pods/fd00::9": (good, "IPv6 is not enabled"),
        f"pods/{mine[77]}": (good, "not bound to the etcd lease of node"),
        f"pods/{mine[78]}": (stranger, "node nobody has no lease"),
        f"pods/{mine[79]}": ("{", "value"),
        f"pods/{mine[80]}": (json.dumps({"node": node1, "container": "../../x"}), "container"),
        f"pods/{free}": (good, "not bound to the etcd lease of node"),
    }
    routes = nodes.cluster.routes("host3")
    try:
        for key, (value, _) in bad.items():
            nodes.cluster.put(key, value)
        # host1 takes back at once what says its name and is not attached there; a stale word of it is told by the others meanwhile
        lasting = {key for key, (value, _) in bad.items() if value != good or not _named_by_host1(key)}
        eventually(lambda: lasting <= set(refusals(nodes, 3)), 10, "all that stays is refused")
        found = refusals(nodes, 3)
        assert {key: bad[key][1] for key in lasting if bad[key][1] not in found[key]} == {}
        assert nodes.cluster.routes("host3") == routes
        assert set(nodes.ways(3)) == {web}
        assert nodes.cluster.status("host3")["pods"]["refused"] >= len(lasting)
        assert nodes.cluster.status("host3")["ready"]
        assert f"pod pods/{mine[78]} refused: node nobody has no lease" in nodes.cluster.log("host3")
        eventually(lambda: nodes.cluster.get(f"pods/{free}") is None, 10, "host1 takes back what it has never written")
    finally:
        for key in bad:
            nodes.cluster.delete(key)
    eventually(lambda: refusals(nodes, 3) == {}, 10, "nothing is left of it")


def _named_by_host1(key: str) -> bool:
    """Whether host1 reads the entry as one of its own: the key is an address."""
    return not any(mark in key for mark in ("-", "/../", "/010."))


def test_an_address_that_another_pod_has_registered_first_is_not_taken(nodes: Nodes, web: str) -> None:
    assert nodes.attach(2, "thief", "thief", web).status == 0
    try:
        eventually(
            lambda: "has registered it first, for pod shop/web" in refusals(nodes, 2).get(f"pods/{web}", ""), 10, "refused"
        )
        assert nodes.ways(3)[web] == ("shop/web", "subnet")
        assert not any(line.startswith(web) for line in nodes.cluster.routes("host2"))
    finally:
        nodes.detach(2, "thief")
    eventually(lambda: refusals(nodes, 2) == {}, 10, "forgotten with its pod")


def test_an_entry_written_over_ours_is_not_what_the_agent_s_own_pod_says(nodes: Nodes, web: str) -> None:
    found = nodes.cluster.get(f"pods/{web}")
    assert found is not None
    nodes.cluster.put(f"pods/{web}", "rubbish", lease=found["lease"])
    eventually(lambda: nodes.ways(3).get(web) == ("shop/web", "subnet"), 10, "written again")


def test_without_the_option_there_is_no_registry_and_the_command_says_how_to_have_one(nodes: Nodes) -> None:
    nodes.cluster.lab.stop_agent("host3")
    lab = nodes.cluster.lab
    try:
        lab.spec, with_registry = type(lab.spec)(**{**asdict(lab.spec), "agent_flags": ("--ip-masq",)}), lab.spec
        lab.start_agents(["host3"])
        done = nodes.command(3, "pods")
        assert (done.returncode, done.stdout) == (
            1,
            "this agent keeps no pod registry; start it with --pod-registry (docs/pods.md)\n",
        )
    finally:
        lab.stop_agent("host3")
        lab.spec = with_registry
        lab.start_agents(["host3"])
