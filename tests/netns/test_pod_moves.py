"""A pod that keeps its address on another node, under traffic, through every backend that can carry it.

──── underlay ──┬─────────────────┬─────────────────┬────
            host1             host2             host3
             ├ old  ──move──▶  └ new             └ far       old and new: the pod shop/web, one address
             └ near                                          near and far ping it all the time
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import eventually
from tests.support.cni import Answer
from tests.support.pods import Nodes, three_nodes

BACKENDS = {
    "userspace": "udp",
    "ebpf": "udp",
    "vxlan": "vxlan",
    "host-gw": "host-gw",
}
LOST_MS = 100


@pytest.fixture(params=list(BACKENDS))
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    network = f'{{"Network": "10.244.0.0/16", "Backend": {{"Type": "{BACKENDS[request.param]}"}}}}'
    with three_nodes(tmp_path_factory.mktemp("moves"), network, "ebpf" if request.param == "ebpf" else "userspace") as made:
        yield made


def test_a_pod_keeps_its_address_on_another_node_and_hardly_an_answer_is_lost(nodes: Nodes) -> None:
    web = nodes.attach(1, "old", "web").address
    near, far = nodes.attach(1, "near", "near").address, nodes.attach(3, "far", "far").address
    eventually(lambda: set(nodes.ways(3)) == {web, near, far}, 10, "all are registered")
    assert (nodes.answered("far", web), nodes.answered("near", web)) == (3, 3)
    probes = [nodes.probes(pod, web) for pod in ("far", "near")]
    try:
        assert nodes.attach(2, "new", "web", web).address == web
        eventually(lambda: nodes.ways(3)[web] == nodes.ways(1)[web] == ("shop/web", "own entry"), 10, "the pod has moved")
        nodes.detach(1, "old")
        assert nodes.ways(2)[web] == ("shop/web", "guest")
        lost = [probe.lost_ms() for probe in probes]
    finally:
        for probe in probes:
            probe.stop()
    assert max(lost) < LOST_MS, lost
    assert [nodes.answered("new", address) for address in (near, far)] == [3, 3]
    assert nodes.runtimes[1].call("CHECK", "new").status == 0
    _an_old_node_cannot_speak_for_it(nodes, web, far)
    _home_again(nodes, web)


def _an_old_node_cannot_speak_for_it(nodes: Nodes, web: str, far: str) -> None:
    """Only the datapaths of ours look at inner sources; the kernel's tunnels do not, but for WireGuard, which counts nothing."""
    if not nodes.cluster.status("host3")["datapath"]["verdicts"]:
        return
    before = nodes.cluster.verdicts("host3").get("drop_spoofed", 0)
    nodes.cluster.sandbox.script(f"ip -n near addr add {web}/32 dev lo")
    done = nodes.cluster.sandbox.run("near", ["ping", "-n", "-q", "-c2", "-i0.05", "-W1", "-I", web, far], check=False)
    assert " 0 received" in done.stdout
    assert nodes.cluster.verdicts("host3").get("drop_spoofed", 0) == before + 2
    nodes.cluster.sandbox.script(f"ip -n near addr del {web}/32 dev lo")


def _home_again(nodes: Nodes, web: str) -> None:
    """Back on the first node it needs no entry of its own, and nothing is left of the way round."""
    assert nodes.attach(1, "back", "web", web).address == web
    eventually(lambda: nodes.ways(3)[web] == ("shop/web", "subnet"), 10, "at home again")
    nodes.detach(2, "new")
    assert (nodes.answered("far", web), nodes.answered("near", web)) == (3, 3)
    for host in ("host1", "host2", "host3"):
        assert not any(line.startswith(f"{web} ") for line in nodes.cluster.routes(host)), host
    assert nodes.cluster.sandbox.run("host1", ["ip", "neigh", "show", "proxy"]).stdout == ""


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_a_pod_keeps_its_addresses_of_both_families(backend: str, tmp_path: Path) -> None:
    families = '"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48"'
    with three_nodes(tmp_path, f'{{{families}, "Backend": {{"Type": "{backend}"}}}}', ipv6=True) as nodes:
        web, web6 = _addresses(nodes.attach(1, "old", "web"))
        for host, pod in ((1, "near"), (3, "far")):
            assert nodes.attach(host, pod, pod).status == 0
        eventually(lambda: len(nodes.ways(3)) == 6, 15, "both addresses of all are registered")
        assert _addresses(nodes.attach(2, "new", "web", web, web6)) == (web, web6)
        moved = ("shop/web", "own entry")
        eventually(lambda: {nodes.ways(host)[each] for host in (1, 3) for each in (web, web6)} == {moved}, 15, "it has moved")
        nodes.detach(1, "old")
        for pod in ("far", "near"):
            assert nodes.answered(pod, web) == 3
            eventually(lambda pod=pod: nodes.answered(pod, web6) == 3, 15, f"{pod} reaches it by IPv6")  # type: ignore[misc]
        assert nodes.runtimes[1].call("CHECK", "new").status == 0


def _addresses(answer: Answer) -> tuple[str, str]:
    assert answer.status == 0, answer
    first, second = (str(item["address"]).split("/")[0] for item in answer.json["ips"])
    return first, second
