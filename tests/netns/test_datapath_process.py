"""The datapath in a process of its own: it outlives the agent, the agent outlives it, and it can do nothing but carry packets.

        etcd 172.31.9.254
    ──── underlay ──┬────────────────────┬────
                host1 172.31.9.1     host2 172.31.9.2          each with an agent and a flanpy-datapath
                 host1-pod1           host2-pod1

One cluster for each datapath serves all tests of this file; each leaves it as it found it, in sync. With ebpf the process has only
what the programs leave to it; the criteria are the same.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clusters import Cluster, carried_by, eventually
from tests.support.probes import probes


@pytest.fixture(scope="module", params=["userspace", "ebpf"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with carried_by(request.param, tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(autouse=True)
def in_sync(two: Cluster) -> Iterator[None]:
    yield
    if two.lab.agent_pid("host1") is None:
        two.lab.start_agents(["host1"])
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")
    eventually(lambda: two.status("host1")["problems"] == [], 15, "host1 has no problem left")


def process(two: Cluster, host: str = "host1") -> dict[str, Any]:
    """What the agent says of its datapath process."""
    found: dict[str, Any] = two.status(host)["datapath"]["process"]
    return found


def agent_is_ready(two: Cluster) -> None:
    eventually(lambda: two.status("host1")["ready"], 20, "the agent is ready")


def test_probes_go_on_while_the_agent_is_killed_and_another_adopts_its_process(
    two: Cluster, measured: Callable[[str], None]
) -> None:
    """Row 6: the agent is killed (-9).

    Its datapath process, and with ebpf the programs in the kernel, go on with the last table; the next agent finds the process by its
    socket, is given all descriptors, and publishes its own table.
    Passes when: 0 probes lost, and the running agent adopts the datapath.
    """
    before, counted = process(two), two.verdicts("host1").get("encapsulated", 0)
    with probes(two) as stream:
        two.lab.stop_agent("host1", signal.SIGKILL)
        stream.wait(500)
        two.lab.start_agents(["host1"])
        agent_is_ready(two)
        stream.wait(300)
    assert stream.losses == ()
    assert stream.total.reordered == 0
    assert process(two) == {"pid": before["pid"], "adopted": True, "restarts": 0}
    assert two.verdicts("host1")["encapsulated"] >= counted + 1000, "the counters go on, too"
    measured(stream.total.words)


def test_a_killed_process_is_replaced_at_once(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 7: the datapath worker is killed (-9).

    The agent holds the same descriptors; it sees the connection hung up, starts another process and gives it the last table. Packets
    wait in the TUN queue and the sockets meanwhile.
    Passes when: restarted; outage ≤ 1 s.
    """
    before, said = process(two), len(two.log("host1"))
    with probes(two) as stream:
        two.sandbox.signal(before["pid"], signal.SIGKILL)
        eventually(lambda: process(two)["pid"] != before["pid"], 5, "there is another process")
        stream.wait(300)
    after = process(two)
    assert (after["adopted"], after["restarts"]) == (False, before["restarts"] + 1)
    assert stream.total.longest_gap_s < 2, "1 s is the goal; the rest is room for a busy machine"
    assert stream.losses == (), "what came meanwhile has waited in the queues"
    assert f"datapath_restarted: datapath process {before['pid']} " in two.log("host1")[said:]
    measured(f"{stream.total.words}, longest gap {stream.total.longest_gap_s * 1e3:.0f} ms")


def test_a_stop_and_a_start_lose_nothing(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 8: SIGTERM and start, as in an upgrade.

    The process stays and carries on; lease and subnet stay as they are.
    Passes when: 0 lost; lease and subnet unchanged.
    """
    key, record = two.key("host1"), two.get(two.key("host1"))
    pid = process(two)["pid"]
    with probes(two) as stream:
        two.lab.stop_agent("host1", signal.SIGTERM)
        stream.wait(300)
        two.lab.start_agents(["host1"])
        agent_is_ready(two)
        stream.wait(300)
    assert stream.losses == ()
    assert process(two)["pid"] == pid
    assert two.key("host1") == key
    assert record is not None and (two.get(key) or {})["value"] == record["value"]
    kind = two.lab.spec.datapath
    assert f"stopped by SIGTERM; the {kind} datapath" in two.log("host1")
    measured(stream.total.words)


def test_what_a_terminal_sends_to_the_agent_does_not_end_its_process(two: Cluster) -> None:
    """Ctrl-C and a hang-up reach the whole foreground group of a terminal, and a kill may be meant for it."""
    pid, agent = process(two)["pid"], two.lab.agent_pid("host1")
    two.sandbox.signal(pid, signal.SIGHUP)
    two.sandbox.run(None, ["sh", "-c", f"kill -INT -{agent} && kill -KILL -{agent} || true"])
    eventually(lambda: two.lab.agent_pid("host1") is None, 10, "the agent has ended")
    two.lab.start_agents(["host1"])
    assert process(two) == {"pid": pid, "adopted": True, "restarts": 0}


def traffic(two: Cluster, host: str) -> dict[str, int]:
    """What its one peer was sent and has sent."""
    (peer,) = two.ask(host, "peers")["peers"]
    counted: dict[str, int] = peer["traffic"]
    return counted


def grown(two: Cluster, before: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {host: {name: count - before[host][name] for name, count in traffic(two, host).items()} for host in before}


def test_what_each_peer_was_sent_and_has_sent_is_counted_whoever_ends(two: Cluster) -> None:
    before = {host: traffic(two, host) for host in ("host1", "host2")}
    assert two.ping("host1-pod1", "host2-pod1", 5) == 5
    pings = {f"{way}_{unit}": count for way in ("sent", "received") for unit, count in (("packets", 5), ("bytes", 5 * 84))}
    pings |= {"dropped_out": 0, "dropped_in": 0}
    assert grown(two, before) == {"host1": pings, "host2": pings}
    two.sandbox.signal(pid := process(two)["pid"], signal.SIGKILL)
    eventually(lambda: process(two)["pid"] != pid, 5, "there is another process")
    two.lab.stop_agent("host1", signal.SIGKILL)
    two.lab.start_agents(["host1"])
    agent_is_ready(two)
    eventually(lambda: two.ask("host1", "peers")["peers"], 15, "the new agent knows its peer")
    assert grown(two, before) == {"host1": pings, "host2": pings}, "neither a process nor an agent nor a table takes them back"
    spoof = "import socket; socket.socket(2, 2).sendto(bytes(40), ('172.31.9.1', 8285))"
    two.sandbox.run("host2", [sys.executable, "-c", spoof])
    eventually(lambda: grown(two, before)["host1"]["dropped_in"] == 1, 5, "what is refused is counted for who has sent it")


def test_status_and_cleanup_name_the_process(two: Cluster) -> None:
    pid = process(two)["pid"]
    said = two.flanpy("host1", "status").stdout
    assert f"process   {pid}" in said
    while_it_runs = json.loads(two.flanpy("host1", "cleanup", "--output=json", "--dry-run").stdout)
    assert while_it_runs["hindrance"].startswith("another flanpy agent runs here (process ")
    two.lab.stop_agent("host1", signal.SIGKILL)
    done = two.flanpy("host1", "status", check=False)
    in_place = ", the BPF programs are in place" if two.lab.spec.datapath == "ebpf" else ""
    assert done.returncode == 10
    assert f"Packets go on by the last table and routes: the datapath process {pid} lives{in_place}. No node" in done.stderr
    listed = json.loads(two.flanpy("host1", "cleanup", "--output=json", "--dry-run").stdout)
    assert {"sort": "process", "name": f"flanpy-datapath (pid {pid})"} in listed["items"]
    assert (listed["hindrance"], listed["items"]) == (None, while_it_runs["items"])
    two.flanpy("host1", "cleanup")
    assert not two.sandbox.process_alive(pid)
    assert "flannel0" not in two.sandbox.run("host1", ["ip", "link"]).stdout
    assert list(two.lab.host_path("host1", "run").iterdir()) == []
