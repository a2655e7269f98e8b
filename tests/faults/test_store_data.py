"""etcd forgets: compacted, wiped, emptied, restored from an old backup; and a node is cut off from it. Probes between the pods go on.

etcd 172.31.9.254 ──┬── host1 ── host1-pod1      extra leases stand for nodes that nobody runs: 192.0.2.x
                    └── host2 ── host2-pod1
"""

import base64
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from flanpy.core.lease_rules import GONE_AGAIN_S
from flanpy.model import DEFAULT_PREFIX
from tests.support import store_faults
from tests.support.clusters import Cluster, cluster, eventually
from tests.support.probes import probes
from tests.support.store_faults import attributes, etcd_state, heal, in_step, peers, seconds_until

LOSS_GRACE_S, PEER_GRACE_S = 6, 4
HOSTS = ("host1", "host2")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = (f"--etcd-loss-grace={LOSS_GRACE_S}", f"--peer-grace={PEER_GRACE_S}")
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1, agent_flags=flags) as running:
        yield running


@pytest.fixture(autouse=True)
def healed(two: Cluster) -> Iterator[None]:
    """Every test ends with agents that are in step with etcd and have nothing to complain of."""
    yield
    heal(two, HOSTS)


def marks(two: Cluster) -> dict[str, int]:
    return {host: len(two.log(host)) for host in HOSTS}


def is_calm(two: Cluster, host: str) -> bool:
    """Whether the agent's key has not been missed lately: whoever deletes it twice is answered later (row 10)."""
    missed = re.findall(r"^(\S+Z) warning lease_gone", two.log(host), re.MULTILINE)
    return not missed or time.time() - datetime.fromisoformat(missed[-1]).timestamp() > GONE_AGAIN_S


def key(name: str) -> str:
    return base64.b64encode(f"{DEFAULT_PREFIX}/{name}".encode()).decode()


def test_a_compaction_while_a_node_is_cut_off(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 4: a compaction while disconnected.

    The watch cannot go on where it was; the agent lists everything, and what is not there any more goes.
    Passes when: the final table equals etcd, deletes included.
    """
    for number in range(4):
        two.put(f"subnets/10.244.{240 + number}.0-24", attributes(f"192.0.2.{number + 1}"))
    eventually(lambda: in_step(two, "host1"), 5, "all known")
    with probes(two) as stream, store_faults.cut_off(two, "host1"):
        eventually(lambda: etcd_state(two, "host1") == "degraded", 12, "host1 notices")
        two.put("subnets/10.244.244.0-24", attributes("192.0.2.5"))
        two.put("subnets/10.244.240.0-24", attributes("192.0.2.77"))
        two.delete("subnets/10.244.241.0-24")
        revision = two.etcd("kv/range", {"key": "AA=="})["header"]["revision"]
        two.etcd("kv/compaction", {"revision": revision, "physical": True})
    known_s = seconds_until(
        lambda: peers(two, "host1").items() >= {"10.244.244.0/24": "192.0.2.5", "10.244.240.0/24": "192.0.2.77"}.items(),
        5,
        "host1 knows what is new and what has changed",
    )
    final_s = known_s + seconds_until(lambda: in_step(two, "host1"), PEER_GRACE_S + 3, "and what was deleted")
    for number in range(5):
        two.etcd("kv/deleterange", {"key": key(f"subnets/10.244.{240 + number}.0-24")})
    assert stream.losses == ()
    measured(f"new and changed after {known_s:.1f} s, equal to etcd after {final_s:.1f} s (--peer-grace {PEER_GRACE_S})")


def test_etcd_comes_back_with_nothing(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 5: etcd is wiped.

    Both agents register the subnets again that their pods use; until then, and for nodes that do not, routes are kept.
    Passes when: the same subnet registered again < 10 s; peers' routes kept until a grace time ends.
    """
    two.put("subnets/10.244.250.0-24", attributes("192.0.2.50"))
    eventually(lambda: "10.244.250.0/24" in peers(two, "host1"), 5, "a third node")
    before, subnets = marks(two), {host: two.subnet(host) for host in HOSTS}
    with probes(two) as stream:
        started = time.monotonic()
        store_faults.wipe(two)
        eventually(lambda: set(store_faults.leases(two)) == set(subnets.values()), 10, "registered again")
        again_s = time.monotonic() - started
        assert "10.244.250.0/24" in peers(two, "host1"), "the third node is kept"
        assert any("grace" in line or "kept" in line for line in two.status("host1")["warnings"])
        kept_s = seconds_until(lambda: "10.244.250.0/24" not in peers(two, "host1"), LOSS_GRACE_S + 5, "until the grace ends")
    assert {host: two.subnet(host) for host in HOSTS} == subnets
    assert "etcd has lost its data" in two.log("host1")[before["host1"] :]
    assert "not registered again within the grace time" in two.log("host1")[before["host1"] :]
    assert stream.losses == ()
    measured(f"{stream.total.words}, the same subnets again after {again_s:.1f} s; a dead node's route went {kept_s:.0f} s later")


def test_an_agent_that_is_killed_meanwhile_keeps_what_the_one_before_has_kept(two: Cluster) -> None:
    """etcd has a dead node's lease no more, so the agent's own file is all that is left of it."""
    two.put("subnets/10.244.251.0-24", attributes("192.0.2.51"))
    eventually(lambda: "10.244.251.0/24" in peers(two, "host1"), 5, "a third node")
    before, subnets = marks(two), {host: two.subnet(host) for host in HOSTS}
    store_faults.wipe(two)
    kept = two.lab.host_path("host1", "run", "kept-leases.json")
    eventually(lambda: "10.244.251.0" in kept.read_text() if kept.exists() else False, 10, "it is written down")
    two.lab.stop_agent("host1", signal.SIGKILL)
    two.lab.start_agents(["host1"])
    eventually(lambda: two.status("host1")["ready"], 20, "the agent is ready")
    assert "10.244.251.0/24" in peers(two, "host1")
    assert "vanished before this start" in two.log("host1")[before["host1"] :]
    eventually(lambda: set(store_faults.leases(two)) == set(subnets.values()), 10, "registered again")
    eventually(lambda: "10.244.251.0/24" not in peers(two, "host1"), LOSS_GRACE_S + 5, "until the grace ends")
    eventually(lambda: not kept.exists(), 5, "nothing is kept any more")


def test_leases_that_are_deleted_together_are_a_loss_too(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 5: everything below the prefix is deleted (``etcdctl del --prefix``).

    Several leases deleted at one revision: no node leaves so. The watch goes on; everybody registers again, nobody's route goes.
    Passes when: the same subnet registered again < 10 s; peers' routes kept.
    """
    subnets = {two.subnet(host) for host in HOSTS}
    eventually(lambda: all(is_calm(two, host) for host in HOSTS), GONE_AGAIN_S + 2, "no key was missed lately")
    with probes(two) as stream:
        start = key("subnets/")
        two.etcd("kv/deleterange", {"key": start, "range_end": base64.b64encode(f"{DEFAULT_PREFIX}/subnets0".encode()).decode()})
        again_s = seconds_until(lambda: set(store_faults.leases(two)) == subnets, 10, "registered again")
    assert stream.losses == ()
    measured(f"{stream.total.words}, registered again after {again_s:.1f} s")


def test_a_node_is_cut_off_from_a_living_etcd_past_its_lease(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 11: a partition from a living etcd past the TTL.

    etcd deletes the node's key; its peers keep the route for ``--peer-grace``; the node itself keeps forwarding, and registers the same
    subnet when etcd is back.
    Passes when: peers drop the route after the grace time; the node itself keeps forwarding; heals < 5 s.
    """
    own, subnet = two.key("host1"), two.subnet("host1")
    with probes(two) as stream:
        with store_faults.cut_off(two, "host1"):
            eventually(lambda: etcd_state(two, "host1") == "degraded", 12, "host1 notices")
            store_faults.expire(two, own)
            stream.wait(500)
            assert subnet in peers(two, "host2"), "kept for the grace time"
            assert stream.total.lost < 100, "some are still on their way"
            dropped_s = seconds_until(lambda: subnet not in peers(two, "host2"), PEER_GRACE_S + 3, "dropped after the grace time")
            assert stream.look()[0].refused == 0, "the node itself keeps forwarding"
        heals_s = seconds_until(lambda: two.get(own) and subnet in peers(two, "host2"), 8, "healed")
        stream.flow()
    assert heals_s < 7, "5 s is the goal; the rest is room for a busy machine"
    assert two.subnet("host1") == subnet
    measured(f"route dropped {dropped_s:.1f} s after the first look (--peer-grace {PEER_GRACE_S}), healed after {heals_s:.1f} s")


def test_etcd_is_restored_from_an_old_backup(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 5: etcd is restored from a backup that is older than one of the leases.

    The revision goes backwards; what the backup does not know is kept, and registered again by whoever lives.
    Passes when: the same subnet registered again < 10 s; peers' routes kept until a grace time ends.
    """
    subnets = {host: two.subnet(host) for host in HOSTS}
    taken = two.get(two.key("host2"))
    assert taken is not None
    two.put(two.key("host2"), json.dumps({"PublicIP": "192.0.2.66"}))  # so the backup has a stranger where host2 is
    eventually(lambda: (two.get(two.key("host2")) or {"value": ""})["value"] == taken["value"], 5, "host2 has written it back")
    store_faults.back_up(two)
    store_faults.expire(two, two.key("host1"))
    eventually(lambda: two.get(two.key("host1")), 15, "host1's lease is newer than the backup")
    for number in range(20):
        two.put("subnets/10.244.250.0-24", attributes(f"192.0.2.{number + 1}"))
    eventually(lambda: peers(two, "host2").get("10.244.250.0/24") == "192.0.2.20", 5, "a third node, and a higher revision")
    with probes(two) as stream:
        started = time.monotonic()
        store_faults.restore(two)
        eventually(lambda: set(store_faults.leases(two)) == set(subnets.values()), 10, "registered again")
        again_s = time.monotonic() - started
        assert "10.244.250.0/24" in peers(two, "host2"), "what the backup does not know is kept"
        eventually(lambda: etcd_state(two, "host1") == "ok", 10, "ok")
    assert {host: two.subnet(host) for host in HOSTS} == subnets
    assert stream.losses == ()
    measured(f"{stream.total.words}, the same subnets after {again_s:.1f} s")
