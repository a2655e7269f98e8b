"""``flanpy ping`` and ``flanpy trace`` on a real cluster: what they say is what the kernel, the datapath and the pods do.

    etcd 172.31.9.254
──── underlay ──┬────────────────────┬────
            host1 172.31.9.1     host2 172.31.9.2
             host1-pod1           host2-pod1
"""

import json
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support.clusters import Cluster, cluster, eventually


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1) as running:
        assert eventually(lambda: running.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other")
        yield running


def flanpy(two: Cluster, *words: str, host: str = "host1") -> CompletedProcess[str]:
    return two.flanpy(host, *words, check=False)


def answer(two: Cluster, *words: str) -> Any:
    return json.loads(flanpy(two, *words, "--output", "json").stdout)


@pytest.mark.parametrize("target", ["host2-pod1", "host2"])
def test_a_ping_goes_through_the_tunnel_and_finds_the_mtu(two: Cluster, target: str) -> None:
    text = two.pod(target) if "pod" in target else "172.31.9.2"
    before = two.verdicts("host2").get("decapsulated", 0)
    done = flanpy(two, "ping", text, "--count", "3", "--interval", "0.01", "--output", "json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sent"], found["received"], found["mtu_bytes"]) == (0, 3, 3, 1472)
    assert two.verdicts("host2")["decapsulated"] >= before + 4
    assert [step["what"] for step in found["way"]] == ["node", "route", "table", "underlay", "node"]


def test_a_node_and_a_pod_are_found_by_their_host_names(two: Cluster) -> None:
    found = answer(two, "trace", "host1-pod1", "host2")
    assert (found["source"], found["arrives"]) == (two.pod("host1-pod1"), True)
    assert found["target"] == two.subnet("host2").split("/")[0]
    outside = flanpy(two, "ping", "etcd")
    assert (outside.returncode, "etcd: neither an address nor" in outside.stderr) == (2, True)


def test_a_ping_finds_where_the_path_is_narrower(two: Cluster) -> None:
    """The other pod takes at most 1300 bytes: the bridge drops what is larger, as a path does that tells nobody."""
    two.sandbox.run("host2-pod1", ["ip", "link", "set", "eth0", "mtu", "1300"])
    try:
        done = flanpy(two, "ping", two.pod("host2-pod1"), "--count", "1")
        assert done.returncode == 1
        assert "packets of more than 1304 bytes do not get there; the MTU of pods is 1472" in done.stdout
    finally:
        two.sandbox.run("host2-pod1", ["ip", "link", "set", "eth0", "mtu", "1472"])


def test_a_ping_that_nobody_answers_ends_with_one(two: Cluster) -> None:
    nobody = two.subnet("host2").replace(".0/24", ".99")
    done = flanpy(two, "ping", nobody, "--count", "2", "--interval", "0.01", "--timeout", "0.05")
    *_, answered, cure = done.stdout.splitlines()
    assert (done.returncode, answered) == (1, "0 of 2 answered")
    assert "`flanpy peers`" in cure and "`flanpy doctor`" in cure


def test_a_target_that_nobody_knows_is_refused(two: Cluster) -> None:
    assert flanpy(two, "ping", "nobody").returncode == 2
    assert flanpy(two, "trace", "10.244.0.1", "nobody").returncode == 2


def test_a_trace_names_every_step_between_two_pods(two: Cluster) -> None:
    source, target, subnet = two.pod("host1-pod1"), two.pod("host2-pod1"), two.subnet("host2")
    found = answer(two, "trace", source, target)
    assert found["arrives"] is True
    assert [(step["what"], step["text"].split(",")[0]) for step in found["steps"]] == [
        ("pod", f"{source} on bridge cni0 port veth-pod1"),
        ("route", "10.244.0.0/16 dev flannel0"),
        ("table", f"{subnet} -> 172.31.9.2:8285 (table {answer(two, 'routes')['table_generation']}"),
        ("underlay", "eth0 172.31.9.1 -> 172.31.9.2:8285 on the link"),
        ("node", f"172.31.9.2 has {subnet}: {target} is behind its bridge"),
    ]
    back = answer(two, "trace", target, source)
    assert [step["what"] for step in back["steps"]] == ["pod", "table", "datapath", "route", "pod"]


def test_a_trace_stops_where_the_kernel_stops(two: Cluster) -> None:
    blocked = two.subnet("host1").replace(".0/24", ".66")
    two.sandbox.run("host1", ["ip", "route", "add", "blackhole", f"{blocked}/32"])
    try:
        done = flanpy(two, "trace", two.pod("host1-pod1"), blocked)
        assert (done.returncode, done.stdout.splitlines()[-1].split("  ")[-1]) == (1, f"STOPS {blocked}: blackhole")
    finally:
        two.sandbox.run("host1", ["ip", "route", "del", "blackhole", f"{blocked}/32"])
