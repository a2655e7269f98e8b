"""Agents with --ip-masq: what leaves the overlay has the node's address, through restarts and repairs, and the rules are whole.

        outside 172.31.9.254 (etcd too)
    ──── underlay ──┬────────────────────┬────
                host1 172.31.9.1     host2 172.31.9.2
                 host1-pod1           host2-pod1

One cluster serves all tests of this file; each leaves it as it found it.
"""

import json
import signal
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network

import pytest

from flanpy.config.network import parse_network_config
from flanpy.core.rules import RuleOptions, plan_rules
from flanpy.core.rules_nft import parse_table, table_of
from flanpy.model import FirewallTool, Subnets
from tests.support.clusters import NETWORK, Agent, Cluster, bare, cluster, eventually
from tests.support.firewall import Flows, counters_in, counters_saved

OUTSIDE, HOST1 = "172.31.9.254", "172.31.9.1"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = ("--ip-masq", "--ip-blackhole-route", "--firewall=nft")
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, agent_flags=flags) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(two: Cluster) -> Iterator[None]:
    yield
    for host in ("host1", "host2"):
        eventually(lambda host=host: is_whole(two, host), 10, f"the rules of {host} are whole again")  # type: ignore[misc]


def is_whole(two: Cluster, host: str, tool: FirewallTool = "nft") -> bool:
    """Whether the table of a host is exactly what its subnet asks for."""
    own = Subnets(IPv4Network(two.subnet(host), strict=False))
    wanted = plan_rules(parse_network_config(NETWORK), own, RuleOptions(ip_masq=True, tool=tool))
    listed = two.sandbox.run(host, ["nft", "-j", "list", "table", "inet", "flanpy"]).stdout
    return parse_table(listed) == table_of(wanted.masquerade, wanted.forward)


def handles(two: Cluster) -> list[int]:
    """The kernel's numbers of the rules on host1: those of rules that were written anew are different."""
    listed = json.loads(two.sandbox.run("host1", ["nft", "-a", "-j", "list", "table", "inet", "flanpy"]).stdout)["nftables"]
    return [item["rule"]["handle"] for item in listed if "rule" in item]


def masqueraded(two: Cluster) -> int:
    """Packets that rule 5 of host1 has met: the first of each flow."""
    listed = json.loads(two.sandbox.run("host1", ["nft", "-j", "list", "table", "inet", "flanpy"]).stdout)
    return counters_in(listed)[4, "network to outside"]


def flows(two: Cluster) -> Flows:
    return Flows(partial(two.sandbox.enter, "host1-pod1"), partial(two.sandbox.enter, None), OUTSIDE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_under_1000_new_flows_a_second_leaves_none_unmasqueraded_and_none_behind(two: Cluster, number: int) -> None:
    before, count = handles(two), masqueraded(two)
    with flows(two) as sent:
        eventually(lambda: sent.sent > 500, 10, "packets before")
        two.lab.stop_agent("host1", number)
        eventually(lambda at=sent.sent: sent.sent > at + 500, 10, "packets while no agent runs")  # type: ignore[misc]
        two.lab.start_agents(["host1"])
        eventually(lambda at=sent.sent: sent.sent > at + 500, 10, "packets after")  # type: ignore[misc]
    assert sent.sources == {HOST1: sent.sent}
    assert masqueraded(two) == count + sent.sent
    assert handles(two) == before, "the rules were good, and so nobody wrote them"


RECEIVE = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("", 5301))
receiver.settimeout(5)
print("up", flush=True)
print(receiver.recvfrom(9)[1][0])
"""


def test_between_pods_no_address_is_changed(two: Cluster) -> None:
    receiver = two.sandbox.popen("host2-pod1", ["python3", "-c", RECEIVE])
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "up\n"
    send = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{two.pod('host2-pod1')}', 5301))"
    two.sandbox.run("host1-pod1", ["python3", "-c", send])
    assert receiver.communicate(timeout=10)[0].strip() == two.pod("host1-pod1")


@pytest.mark.parametrize(
    "words",
    [
        "flush ruleset",
        "delete table inet flanpy",
        "flush chain inet flanpy postrouting",
        "insert rule inet flanpy postrouting accept",
    ],
)
def test_rules_that_somebody_broke_are_whole_again_before_long(two: Cluster, words: str) -> None:
    two.sandbox.run("host1", ["nft", *words.split()])
    eventually(lambda: is_whole(two, "host1"), 2, "the kernel told, and the rules are whole")


def test_a_blackhole_keeps_what_is_for_nobody_here_from_going_round(two: Cluster) -> None:
    subnet = IPv4Network(two.subnet("host1"), strict=False)
    assert f"blackhole {subnet} proto 102 metric 4096" in two.routes("host1")
    two.sandbox.run("host1", ["ip", "route", "del", "blackhole", str(subnet), "metric", "4096"])
    eventually(lambda: f"blackhole {subnet} proto 102 metric 4096" in two.routes("host1"), 5, "it is back")
    assert two.ping("host1-pod1", "host2-pod1") == 3


def test_nothing_is_said_against_ip_masq_any_more(two: Cluster) -> None:
    log = two.log("host1")
    assert "unsupported_option" not in log
    assert two.status("host1")["rules"] == {"masquerade": "nft", "forward": "nft"}
    assert "rules_placed: rules: masquerade by nft, forward by nft" in log


def test_iptables_keeps_the_rules_where_it_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with bare(tmp_path_factory.mktemp("logs")) as one:
        with Agent(one, "--ip-masq", "--firewall=iptables", "--iptables-resync=1", "--teardown") as agent:
            agent.says("ready: subnet", 30)
            before = saved(one)
            assert "-j FLANPY-POSTRTG" in before and "-j FLANPY-FWD" in before
            for words in (["-t", "nat", "-F"], ["-F", "FLANPY-FWD"]):
                numbers = numbered(one)
                one.sandbox.run("host1", ["iptables", *words])
                eventually(lambda: saved(one) == before, 5, "the rules are back")
                assert numbered(one) != numbers, "they were gone"
            assert agent.stop() == 0
        assert saved(one) == before, "rules stay when the agent stops"
        with Agent(one, "--firewall=iptables", "--iptables-forward-rules=false", name="b") as agent:
            agent.says("ready: subnet", 30)
            assert "FLANPY" not in saved(one), "what is not wanted any more goes"


def test_a_restart_with_iptables_under_1000_new_flows_a_second_loses_none_either(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def met(one: Cluster) -> int:
        return counters_saved(one.sandbox.run("host1", ["iptables-save", "-c"]).stdout, 4)[4, "network to outside"]

    flags = ("--ip-masq", "--firewall=iptables")
    with cluster(tmp_path_factory.mktemp("logs"), hosts=1, pods=1, agent_flags=flags) as one:
        count = met(one)
        with flows(one) as sent:
            eventually(lambda: sent.sent > 500, 10, "packets before")
            one.lab.stop_agent("host1", signal.SIGKILL)
            eventually(lambda at=sent.sent: sent.sent > at + 300, 10, "packets while no agent runs")  # type: ignore[misc]
            one.lab.start_agents(["host1"])
            eventually(lambda at=sent.sent: sent.sent > at + 300, 10, "packets after")  # type: ignore[misc]
        assert (sent.sources, met(one)) == ({HOST1: sent.sent}, count + sent.sent)


def saved(one: Cluster) -> str:
    text = one.sandbox.run("host1", ["iptables-save"]).stdout
    return "\n".join(line.split(" [")[0] for line in text.splitlines() if not line.startswith("#"))


def numbered(one: Cluster) -> str:
    """The same with the kernel's numbers of the rules."""
    return one.sandbox.run("host1", ["nft", "-a", "-s", "list", "ruleset"]).stdout


def test_enable_nftables_puts_every_rule_into_nft(tmp_path_factory: pytest.TempPathFactory) -> None:
    network = '{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "udp"}}'
    with bare(tmp_path_factory.mktemp("logs"), network=network) as one, Agent(one, "--ip-masq") as agent:
        agent.says("rules: masquerade by nft, forward by nft", 30)
        agent.says("ready: subnet", 30)
        assert "FLANPY" not in saved(one)
