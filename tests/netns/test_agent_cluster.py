"""Two real agents with a real etcd: leases, packets, and what happens when somebody breaks something (more of that in tests/faults).

        etcd 172.31.9.254
    ──── underlay ──┬────────────────────┬────
                host1 172.31.9.1     host2 172.31.9.2
                 host1-pod1           host2-pod1

One cluster for each datapath serves all tests of this file; each leaves it as it found it, in sync.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flanpy.lab.cluster import IMPORT_PATH
from tests.support.clusters import Cluster, carried_by, eventually
from tests.support.transfers import transfer


@pytest.fixture(scope="module", params=["userspace", "ebpf"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with carried_by(request.param, tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(autouse=True)
def in_sync(two: Cluster) -> Iterator[None]:
    yield
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")


def peers(two: Cluster, host: str) -> list[str]:
    return [peer["subnets"] for peer in two.status(host)["peers"]]


def test_a_lease_stands_in_etcd_as_flannel_writes_it(two: Cluster) -> None:
    record = two.get(two.key("host1"))
    assert record is not None
    assert record["value"].startswith('{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendData":{"flanpy":{"node":"')
    assert int(record["lease"]) != 0
    assert sorted(two.keys()) == sorted([two.key("host1"), two.key("host2")])


def test_the_device_and_the_route_are_flannel_s(two: Cluster) -> None:
    subnet = two.subnet("host1").split("/")[0]
    device = json.loads(two.sandbox.run("host1", ["ip", "-j", "addr", "show", "flannel0"]).stdout)[0]
    assert (device["mtu"], [(a["local"], a["prefixlen"]) for a in device["addr_info"]]) == (1472, [(subnet, 32)])
    assert "10.244.0.0/16 dev flannel0 proto 102 scope link" in two.routes("host1")


def test_pods_reach_each_other_and_every_packet_is_counted(two: Cluster) -> None:
    before = two.verdicts("host1")
    assert two.ping("host1-pod1", "host2-pod1", 20) == 20
    after = two.verdicts("host1")
    assert after["encapsulated"] - before.get("encapsulated", 0) >= 20
    assert after["decapsulated"] - before.get("decapsulated", 0) >= 20
    assert {name for name in after if name.startswith("drop")} <= {name for name in before if name.startswith("drop")}


@pytest.mark.parametrize(("source", "target"), [("host1-pod1", "host2-pod1"), ("host2-pod1", "host1-pod1")])
def test_what_is_sent_arrives_whole(two: Cluster, source: str, target: str) -> None:
    sent, arrived = transfer(two, source, target)
    assert sent == arrived
    assert len(sent) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize(("size", "fits"), [(1472 - 28, True), (1473 - 28, False)])
def test_the_mtu_is_the_underlay_s_less_28(two: Cluster, size: int, fits: bool) -> None:
    done = two.sandbox.run("host1-pod1", ["ping", "-c1", "-W1", "-Mdo", f"-s{size}", two.pod("host2-pod1")], check=False)
    assert (done.returncode == 0) == fits


def test_the_overlay_is_two_hops_on_the_way(two: Cluster) -> None:
    """A TTL of 1 ends at the own host's bridge, 2 at the other end of the tunnel (it is spent at both ends, as flannel's is)."""
    said = [
        two.sandbox.run("host1-pod1", ["ping", "-c1", "-W1", f"-t{ttl}", two.pod("host2-pod1")], check=False).stdout
        for ttl in (1, 2, 3, 8)
    ]
    assert "Time to live exceeded" in said[0]
    assert "Time to live exceeded" in said[1]
    assert "bytes from" in said[3]


def test_an_address_that_nobody_has_is_unreachable_at_once(two: Cluster) -> None:
    leased = {two.subnet(host) for host in ("host1", "host2")}
    free = next(f"10.244.{third}.9" for third in range(1, 256) if f"10.244.{third}.0/24" not in leased)
    done = two.sandbox.run("host1-pod1", ["ping", "-c1", "-W2", free], check=False)
    assert "Net Unreachable" in done.stdout
    assert two.verdicts("host1")["drop_no_route"] >= 1


def test_a_route_of_an_earlier_run_is_swept(two: Cluster) -> None:
    two.sandbox.run("host1", ["ip", "route", "add", "10.99.0.0/16", "dev", "eth0", "proto", "102"])
    eventually(lambda: not any(line.startswith("10.99.0.0/16") for line in two.routes("host1")), 5, "the stale route is gone")


HOSTILE = {
    "subnets/10.244.250.0-24": b"{",
    "subnets/10.244.251.0-24": b'{"PublicIP":"172.31.9.77; rm -rf /","PublicIPv6":null}',
    "subnets/10.244.252.0-24": b"\xff\xfe\x00",
    "subnets/10.244.253.0-24": b'{"PublicIP":"0.0.0.0","PublicIPv6":null}',
    "subnets/10.244.254.0-24": b'{"PublicIP":"172.31.9.9","PublicIPv6":null,"BackendData":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "subnets/0.0.0.0-0": b'{"PublicIP":"172.31.9.9","PublicIPv6":null}',
    "subnets/$(reboot)": b'{"PublicIP":"172.31.9.9","PublicIPv6":null}',
    "subnets/192.168.0.0-24": b'{"PublicIP":"172.31.9.9","PublicIPv6":null}',
    "subnets/10.244.255.0-24": b'{"PublicIP":"172.31.9.9","PublicIPv6":null' + b" " * 1_000_000 + b"}",
}


def test_hostile_keys_are_refused_one_by_one_and_said(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 23: hostile values in etcd: bad JSON, overlapping subnets, 0.0.0.0/0, shell metacharacters, 1 MB.

    Each is refused by its key, in the log and in status; a good key that is written among them is taken.
    Passes when: refused key by key; the others work; no shell ever.
    """
    before = peers(two, "host1")
    for key, value in HOSTILE.items():
        two.put(key, value)
    two.put("subnets/10.244.249.0-24", '{"PublicIP":"172.31.9.99","PublicIPv6":null}')
    try:
        eventually(lambda: sorted(peers(two, "host1")) == sorted([*before, "10.244.249.0/24"]), 5, "the good key is taken")
        problems = "\n".join(two.status("host1")["problems"])
        for key in HOSTILE:
            assert f"lease {key} refused: " in problems
        assert two.ping("host1-pod1", "host2-pod1") == 3
    finally:
        for key in (*HOSTILE, "subnets/10.244.249.0-24"):
            two.delete(key)
    eventually(lambda: two.status("host1")["problems"] == [] and peers(two, "host1") == before, 5, "all is forgotten")
    measured(f"{len(HOSTILE)} hostile keys refused one by one, a good one among them taken")


def test_a_lease_over_a_peer_s_subnet_takes_nothing_away(two: Cluster) -> None:
    two.put("subnets/10.244.0.0-17", '{"PublicIP":"172.31.9.66","PublicIPv6":null}')
    two.put("subnets/10.244.128.0-17", '{"PublicIP":"172.31.9.66","PublicIPv6":null}')
    try:
        eventually(lambda: "overlaps" in str(two.status("host1")["problems"]), 5, "the overlap is said")
        assert two.ping("host1-pod1", "host2-pod1") == 3
    finally:
        two.delete("subnets/10.244.0.0-17")
        two.delete("subnets/10.244.128.0-17")


def test_our_key_deleted_by_hand_is_written_again(two: Cluster) -> None:
    key = two.key("host1")
    two.delete(key)
    eventually(lambda: two.get(key), 3, "the same subnet is registered again")
    assert two.key("host1") == key


def test_with_etcd_killed_packets_go_on_and_status_says_so(two: Cluster) -> None:
    two.lab.stop_etcd(signal.SIGKILL)
    try:
        eventually(lambda: two.status("host1")["etcd"]["state"] == "degraded", 10, "degraded")
        assert two.ping("host1-pod1", "host2-pod1", 20) == 20
    finally:
        two.lab.start_etcd()
    eventually(lambda: two.status("host1")["etcd"]["state"] == "ok", 10, "etcd is known to be back")
    assert two.status("host1")["problems"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_restarted_agent_has_its_subnet_again(two: Cluster, number: int) -> None:
    before = two.key("host1"), two.get(two.key("host1"))
    two.lab.stop_agent("host1", number)
    assert two.ping("host1-pod1", "host2-pod1", 20) == 20, "the datapath goes on without the agent"
    two.lab.start_agents(["host1"])
    assert two.key("host1") == before[0]
    assert two.status("host1")["ready"]


def test_a_second_agent_on_a_host_is_refused(two: Cluster) -> None:
    done = two.sandbox.run(
        "host1",
        ["env", "python3", "-m", "flanpy", "agent", "--iface", "eth0"],
        env={**two.lab.agent_settings("host1"), **python()},
        check=False,
    )
    assert (done.returncode, "another flanpy agent runs here" in done.stderr) == (6, True)


def python() -> dict[str, str]:
    """The interpreter of the tests first in PATH, with this checkout."""
    import os
    import sys

    return {**IMPORT_PATH, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_a_smaller_mtu_of_the_uplink_reaches_device_and_subnet_env(two: Cluster) -> None:
    two.sandbox.run("host1", ["ip", "link", "set", "eth0", "mtu", "1400"])
    eventually(
        lambda: '"mtu":1372' in two.sandbox.run("host1", ["ip", "-j", "link", "show", "flannel0"]).stdout, 5, "the device has it"
    )
    eventually(lambda: two.lab.lease("host1").mtu_bytes == 1372, 5, "subnet.env has it")  # type: ignore[union-attr]
    two.sandbox.run("host1", ["ip", "link", "set", "eth0", "mtu", "1500"])
    eventually(lambda: two.lab.lease("host1").mtu_bytes == 1472, 5, "and back")  # type: ignore[union-attr]
