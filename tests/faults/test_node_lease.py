"""A node and its lease: taken by another, deleted, none to be had, asked for by a clone, and a clock that jumps. Real agents and etcd.

etcd 172.31.9.254 ──┬── host1 ── host1-pod1      leases of 192.0.2.x stand for nodes that nobody runs
                    └── host2 ── host2-pod1      (alone: host1 by itself, its agent started by the test)
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import store_faults
from tests.support.clusters import Agent, Cluster, bare, cluster, eventually
from tests.support.probes import probes
from tests.support.store_faults import attributes, seconds_until

CLOCK_SHIFT = Path(__file__).parents[2] / "csrc" / "tests" / "clock_shift.c"
DAY_S = 86_400
SMALL = '{"Network": "10.244.0.0/28", "SubnetLen": 30, "Backend": {"Type": "udp"}}'  # three subnets can be leased


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Cluster]:
    """For one test alone: here nodes get other subnets, and their pods' addresses are none of them any more."""
    with cluster(tmp_path, hosts=2, pods=1) as running:
        yield running


def said_since(two: Cluster, host: str) -> Callable[[str], bool]:
    """Whether the host's agent has said something since now."""
    before = len(two.log(host))
    return lambda text: text in two.log(host)[before:]


def test_our_key_is_deleted_by_hand(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 10: the node's own lease key is deleted by hand.

    The watch tells it, and it registers the same subnet again; a second time within ten seconds it waits as long: no flapping.
    Passes when: the same subnet taken again < 2 s if free, else a loud conflict; no flapping.
    """
    key, said = two.key("host1"), said_since(two, "host1")
    before = two.get(key)
    with probes(two, [("host1-pod1", "host2-pod1")]) as stream:
        two.delete(key)
        again_s = seconds_until(lambda: two.get(key), 3, "the same subnet is registered again")
        again = two.get(key)
        two.delete(key)
        time.sleep(2)  # that it does nothing for so long is what is tested
        assert two.get(key) is None, "deleted twice: whoever does that is not fought"
        stream.flow()
    assert before is not None and again is not None and again["value"] == before["value"]
    assert two.key("host1") == key
    assert said("was deleted or has expired: registering it again")
    eventually(lambda: two.get(key), 15, "and again after a while")
    assert two.subnet("host1") == key.removeprefix("subnets/").replace("-", "/")
    measured(f"the same subnet again after {again_s:.2f} s; the second time within 10 s it waited for that long")


def test_a_clone_of_a_machine_joins(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 14: two nodes with one identity (a cloned disk).

    The second marks the lease that has its node id and waits for an answer; the living owner writes it back within its next look at etcd.
    Passes when: the second is refused with a message, the first unharmed.
    """
    two.lab.stop_agent("host2")
    kept = two.lab.host_path("host2", "state", "node-id").read_text()
    key, subnet = two.key("host1"), two.subnet("host1")
    created = (two.get(key) or {})["create_revision"]
    said, clone_said = said_since(two, "host1"), said_since(two, "host2")
    two.delete(two.key("host2"))
    shutil.copy(two.lab.host_path("host1", "state", "node-id"), two.lab.host_path("host2", "state", "node-id"))
    two.lab.host_path("host2", "subnet.env").unlink()
    two.lab._start_agent("host2")
    try:
        refused_s = seconds_until(
            lambda: clone_said("another living node has our node id"), 20, "the clone says what it is, and the cure"
        )
        eventually(lambda: "contested" not in str(two.get(key)), 5, "the lease is what it was")
        assert said("another node asks whether we live: it has our node id")
        found = two.get(key)
        assert found is not None and found["create_revision"] == created and "172.31.9.1" in found["value"]
        assert two.subnet("host1") == subnet
        assert two.status("host1")["state"] == "ready"
        assert two.status("host2")["lease"] is None
    finally:
        two.lab.stop_agent("host2")
        two.lab.host_path("host2", "state", "node-id").write_text(kept)
        two.lab.start_agents(["host2"])
    measured(f"the clone is refused after {refused_s:.1f} s (the answer comes at once; a dead owner would have 10 s)")


def test_an_agent_sleeps_past_its_lease_and_another_has_the_subnet(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 9: the agent is stopped (SIGSTOP) past its TTL, and its subnet is taken by another.

    It wakes, sees that the key has another owner by its revision, says so, and takes another subnet.
    Passes when: notices by revision, never overwrites the new owner, takes another subnet, says so.
    """
    key, subnet, said = two.key("host1"), two.subnet("host1"), said_since(two, "host1")
    two.lab.signal_agent("host1", signal.SIGSTOP)
    try:
        store_faults.expire(two, key)
        two.put(key, attributes("192.0.2.9", "heir"))
        theirs = two.get(key)
    finally:
        two.lab.signal_agent("host1", signal.SIGCONT)
    other_s = seconds_until(lambda: two.subnet("host1") != subnet and two.get(two.key("host1")), 15, "another subnet")
    assert said("is lost: node heir has it; pods of this node need another")
    assert two.get(key) == theirs, "the new owner's key was never touched"
    eventually(lambda: subnet in store_faults.peers(two, "host1"), 5, "the heir is a peer")
    two.delete(key)
    measured(f"another subnet {other_s:.1f} s after it woke")


# ------------------------------------------------------------------------------------------------ one agent alone


def test_no_subnet_is_left(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """Row 13: no subnet is left.

    The agent says so and how large the pool is, looks again with back-off, and takes what is freed.
    Passes when: a clear error, back-off, recovers when one is freed.
    """
    with bare(tmp_path, network=SMALL) as alone:
        taken = [f"subnets/10.244.0.{4 * number}-30" for number in (1, 2, 3)]
        for number, key in enumerate(taken):
            alone.put(key, attributes(f"192.0.2.{number + 1}"))
        with Agent(alone, "--datapath=userspace") as agent:
            agent.says("no free /30")
            time.sleep(2)  # some looks more, with back-off
            assert agent.log.count("no free /30") == 1, "said once"
            alone.delete(taken[1])
            freed_s = seconds_until(lambda: "ready: subnet" in agent.log, 10, "it has the subnet that was freed")
            assert agent.subnet() == "10.244.0.9/30"
    measured(f"ready {freed_s:.1f} s after one was freed")


@pytest.fixture(scope="module")
def clock_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("clock") / "clock_shift.so"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(CLOCK_SHIFT), "-o", str(library), "-ldl"], check=True, timeout=60)
    return library


def test_the_clock_jumps_a_day(tmp_path: Path, clock_shift: Path, measured: Callable[[str], None]) -> None:
    """Row 15: the clock jumps a day, forwards and backwards.

    Leases, timers and back-off live on the monotonic clock; only what is written for people has the time of day.
    Passes when: no lease lost.
    """
    with bare(tmp_path) as alone:
        shift = alone.sandbox.path("/run/lab/shift")
        shift.write_text("0\n")
        env = {"LD_PRELOAD": str(clock_shift), "CLOCK_SHIFT_FILE": "/run/lab/shift"}
        with Agent(alone, "--datapath=userspace", "--log-format=json", env=env) as agent:
            agent.says('"event": "ready"')
            (key,) = alone.keys()
            before = alone.get(key)
            for jump in (DAY_S, -DAY_S):
                shift.write_text(f"{jump}\n")
                seen = len(agent.log)
                alone.put("subnets/10.244.250.0-24", attributes(f"192.0.2.{50 + (jump > 0)}"))
                eventually(lambda seen=seen: "in sync with" in agent.log[seen:], 10, "it goes on working")
            alone.delete("subnets/10.244.250.0-24")
            eventually(lambda: agent.log.count("in sync with 0 peers") == 2, 10, "and again")
            assert alone.get(key) == before, "not a byte, not a revision: it was neither lost nor renewed"
            days = {json.loads(line)["time"][:10] for line in agent.log.splitlines()}
            assert len(days) == 3, f"the agent's own log shows the jumps: {days}"
    measured("a day forwards and a day backwards: lease unchanged, changes applied")
