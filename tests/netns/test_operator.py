"""What the operator sees of a real cluster: every command on a host with an agent, and what it tells machines.

        etcd 172.31.9.254
    ──── underlay ──┬────────────────────┬────
                host1 172.31.9.1     host2 172.31.9.2
                 host1-pod1           host2-pod1

One cluster serves all tests of this file; each leaves it as it found it.
"""

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flanpy.agent.metrics import METRICS, PEER_LABELS
from flanpy.agent.own_use import read_own_use
from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Agent, Cluster, bare, cluster, eventually

STRANGERS = {
    "subnets/10.244.249.0-24": '{"PublicIP":"172.31.9.99","PublicIPv6":null,"BackendType":"vxlan"}',
    "subnets/10.244.250.0-24": "{",
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(
        tmp_path_factory.mktemp("logs"), hosts=2, pods=1, agent_flags=("--pod-registry", "--peer-probe-interval=10")
    ) as running:
        yield running


def flanpy(two: Cluster, *words: str, host: str = "host1") -> CompletedProcess[str]:
    return two.flanpy(host, *words, check=False)


def answer(two: Cluster, *words: str, host: str = "host1") -> Any:
    done = flanpy(two, *words, "--output", "json", host=host)
    return json.loads(done.stdout)


def test_status_is_ready_and_ends_with_zero(two: Cluster) -> None:
    done = flanpy(two, "status", "--wait", "10")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"flanpy    \S+, ready, for .*", lines[0])
    assert re.fullmatch(rf"lease     {two.subnet('host1')}, (1 d|23 h 5\d min) left", lines[1])
    assert lines[2:4] == ["network   10.244.0.0/16, backend udp, port 8285", "datapath  userspace (asked for)"]
    assert "\x1b" not in done.stdout


def test_peers_and_routes_are_those_of_the_cluster(two: Cluster) -> None:
    other = two.subnet("host2")
    peers = answer(two, "peers")
    assert [(peer["subnets"], peer["hop"], peer["backend"]) for peer in peers["peers"]] == [(other, "172.31.9.2:8285", "udp")]
    assert answer(two, "status", host="host2")["node"] == peers["peers"][0]["node"]
    routes = answer(two, "routes")
    assert (routes["local"], routes["table"]) == ([two.subnet("host1")], [{"prefix": other, "hop": "172.31.9.2:8285"}])
    assert {"destination": "10.244.0.0/16", "device": "flannel0", "gateway": None, "kind": "unicast", "state": "ok"} in routes[
        "kernel"
    ]


def test_what_is_not_used_is_shown_with_its_reason_and_does_not_degrade_the_node(two: Cluster) -> None:
    for key, value in STRANGERS.items():
        two.put(key, value)
    try:
        peers = eventually(lambda: (found := answer(two, "peers"))["foreign"] and found["refused"] and found, 10, "both are seen")
        assert peers["foreign"][0]["reason"] == "its backend is vxlan, ours is udp"
        assert [item["key"] for item in peers["refused"]] == ["subnets/10.244.250.0-24"]
        assert flanpy(two, "status").returncode == 0
        assert "refused" in flanpy(two, "leases").stdout
    finally:
        for key in STRANGERS:
            two.delete(key)
    eventually(lambda: answer(two, "status")["problems"] == [], 10, "all is forgotten")


def test_leases_come_from_etcd_without_an_agent(two: Cluster) -> None:
    env = {**IMPORT_PATH, "FLANPY_ETCD_ENDPOINTS": two.lab.etcd_url}
    done = two.sandbox.run("host1", [sys.executable, "-m", "flanpy", "leases", "--output", "json"], env=env)
    rows = json.loads(done.stdout)["leases"]
    assert sorted(row["subnets"] for row in rows) == sorted(two.subnet(host) for host in ("host1", "host2"))
    assert all(86000 < row["seconds_left"] <= 86400 for row in rows)


def test_a_subnet_is_reserved_and_released(two: Cluster) -> None:
    taken = {row["subnets"] for row in answer(two, "leases")["leases"]}
    free = next(f"10.244.{third}.0/24" for third in (77, 78, 79) if f"10.244.{third}.0/24" not in taken)
    done = flanpy(two, "reserve", free, "--public-ip", "172.31.9.88")
    assert (done.returncode, done.stdout) == (0, f"{free} is reserved for 172.31.9.88\n")
    assert flanpy(two, "reserve", free, "--public-ip", "172.31.9.89").returncode == 7
    row = next(row for row in answer(two, "leases")["leases"] if row["subnets"] == free)
    assert (row["reservation"], row["seconds_left"], row["public_ip"]) == (True, None, "172.31.9.88")
    assert answer(two, "release", free) == {"subnets": free, "released": True}


def test_a_living_lease_is_not_released_by_mistake_and_can_become_a_reservation(two: Cluster) -> None:
    subnet = two.subnet("host2")
    assert flanpy(two, "release", subnet).returncode == 7
    assert flanpy(two, "reserve", subnet, "--public-ip", "172.31.9.2").returncode == 0
    eventually(lambda: answer(two, "status", host="host2")["lease"]["seconds_left"] is None, 10, "host2 knows that it never ends")
    assert "a reservation" in flanpy(two, "status", host="host2").stdout
    assert two.ping("host1-pod1", "host2-pod1") == 3


def test_the_log_level_changes_while_the_agent_runs(two: Cluster) -> None:
    assert flanpy(two, "log-level").stdout == "info\n"
    assert flanpy(two, "log-level", "debug").stdout == "debug (was info)\n"
    two.sandbox.run("host1", ["ip", "link", "add", "noise", "type", "veth", "peer", "name", "echo"])
    two.sandbox.run("host1", ["ip", "link", "del", "noise"])
    try:
        eventually(lambda: "kernel_changed" in two.log("host1"), 10, "debug lines are in the log")
    finally:
        flanpy(two, "log-level", "info")


def test_every_metric_has_something_to_say_of_a_node_that_works(two: Cluster) -> None:
    status = {**answer(two, "status"), "peers": answer(two, "peers")["peers"]}
    process = read_own_use(status["uptime_s"])
    assert [metric.name for metric in METRICS if not list(metric.samples(status, process))] == []


def test_status_and_peers_tell_the_same_of_each_peer(two: Cluster) -> None:
    (shown,), (listed,) = answer(two, "status")["peers"], answer(two, "peers")["peers"]
    assert shown["traffic"]["sent_packets"] >= 0
    assert {**shown, "traffic": set(shown["traffic"])} == {
        **{name: listed[name] for name in shown},
        "traffic": set(listed["traffic"]),
    }


def test_top_counts_what_flows(two: Cluster) -> None:
    before = two.verdicts("host1").get("encapsulated", 0)
    eventually(lambda: two.ping("host1-pod1", "host2-pod1", 5) == 5, 10, "five pings in a row are answered")
    rates = {rate["name"]: rate for rate in answer(two, "top", "--once", "--interval", "0.1")["rates"]}
    assert rates["encapsulated"]["total"] >= before + 5
    assert "COUNTER" in flanpy(two, "top", "--once", "--interval", "0.1").stdout


def test_the_doctor_finds_nothing_on_a_sound_host(two: Cluster) -> None:
    done = flanpy(two, "doctor")
    assert done.returncode == 0, done.stdout
    found = {check["name"]: check["reason"] for check in checks(two)}
    assert found["path to 172.31.9.2"] == "packets of 1500 bytes get there whole"
    opened = "UDP port 8285 is open both ways, packets of 1472 bytes, the MTU of pods, get there whole"
    assert found["overlay to 172.31.9.2"] == opened
    assert {"clock", "offloads eth0"} <= set(found)


def checks(two: Cluster) -> list[dict[str, str]]:
    found: list[dict[str, str]] = answer(two, "doctor")["checks"]
    return found


BREAKS = """
sysctl -qw net.ipv4.ip_forward=0
nft -f - <<END
table inet guard {
    chain port { type filter hook input priority 0; policy accept; udp dport 8285 drop; }
    chain pods { type filter hook forward priority 0; policy drop; }
}
END
"""


def test_the_doctor_finds_what_is_wrong_with_a_host(two: Cluster) -> None:
    """Forwarding off, a filter on port and forwarding, a narrow path, a flanneld: each is named with its cure.

    A veth takes 4 bytes more than its MTU says, room for a VLAN tag; the doctor measures what really gets there.
    """
    two.sandbox.run("host2", ["ip", "link", "set", "eth0", "mtu", "1400"])
    two.sandbox.run("host1", ["sh", "-euc", BREAKS])
    flanneld = two.sandbox.start("host1", ["bash", "-c", "exec -a flanneld sleep 60"], "/run/lab/flanneld.log")
    try:
        wrong = eventually(
            lambda: len(found := [check for check in checks(two) if check["level"] != "ok"]) == 6 and found, 20, "six findings"
        )
        assert all(check["cure"] for check in wrong)
        assert [(check["name"], check["level"], check["reason"]) for check in wrong] == [
            ("ip_forward", "warning", "net.ipv4.ip_forward is 0: no packet goes from pods to the tunnel"),
            ("other agents", "error", f"flanneld (process {flanneld}) runs here too: two agents undo each other's work"),
            ("firewall", "warning", "nft: chain inet guard port: a rule drops UDP port 8285"),
            ("firewall", "warning", "nft: chain inet guard pods drops by policy, and no rule names 10.244.0.0/16"),
            (
                "path to 172.31.9.2",
                "error",
                "packets of more than 1404 bytes do not get there; the underlay interface says 1500",
            ),
            ("overlay to 172.31.9.2", "error", "the node answers on the underlay, and not through the tunnel"),
        ]
    finally:
        two.sandbox.signal(flanneld, signal.SIGKILL)
        two.sandbox.run("host1", ["sh", "-euc", "nft delete table inet guard; sysctl -qw net.ipv4.ip_forward=1"])
        two.sandbox.run("host2", ["ip", "link", "set", "eth0", "mtu", "1500"])
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again")


def test_with_etcd_away_the_node_is_degraded_and_ends_with_one(two: Cluster) -> None:
    two.lab.stop_etcd(signal.SIGKILL)
    try:
        done = eventually(lambda: (shown := flanpy(two, "status")).returncode == 1 and shown, 15, "status ends with 1")
        assert ", degraded, for " in done.stdout
        assert "etcd      degraded, last heard of " in done.stdout
    finally:
        two.lab.start_etcd()
    eventually(lambda: flanpy(two, "status").returncode == 0, 15, "ready again")


def test_without_the_agent_commands_say_so_and_the_doctor_explains(two: Cluster) -> None:
    two.lab.stop_agent("host1")
    try:
        assert flanpy(two, "status").returncode == 10
        assert flanpy(two, "doctor").returncode == 11
        port = next(check for check in checks(two) if check["name"] == "UDP port 8285")
        assert (port["level"], "held by the datapath process" in port["reason"]) == ("ok", True)
    finally:
        two.lab.start_agents(["host1"])
    assert flanpy(two, "status", "--wait", "15").returncode == 0


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def network(agent: Agent) -> IPv4Network:
    return IPv4Interface(agent.subnet()).network


def test_machines_read_metrics_status_and_signs_of_life(tmp_path: Path) -> None:
    """An agent with a health server, and a service manager at the other end of its socket."""
    with bare(tmp_path) as host:
        with host.sandbox.enter("host1"):
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager.bind("\0manager")
        env = {"NOTIFY_SOCKET": "@manager", "WATCHDOG_USEC": "600000"}
        heard: list[str] = []
        flags = ("--healthz-port=8471", "--healthz-ip=127.0.0.1", "--datapath=userspace", "--pod-registry")

        def told(what: str) -> bool:
            manager.settimeout(0.2)
            heard.append(manager.recv(4096).decode())
            return any(what in message for message in heard)

        with manager, Agent(host, *flags, env=env) as agent:
            eventually(lambda: told("READY=1"), 15, "ready")
            eventually(lambda: told(f"STATUS=ready: subnet {network(agent)}, 0 peers, datapath userspace"), 5, "its status")
            heard.clear()
            eventually(lambda: told("WATCHDOG=1") and len(heard) > 3, 5, "signs of life, again and again")
            text = host.sandbox.run("host1", [sys.executable, "-c", FETCH, "http://127.0.0.1:8471/metrics"]).stdout
    alone = [metric for metric in METRICS if metric.labels[:2] != PEER_LABELS]
    assert [metric.name for metric in alone if f"# TYPE {metric.name} {metric.kind}\n" not in text] == []
    assert "flanpy_ready 1\n" in text
