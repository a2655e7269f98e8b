"""What the tests of faults share: two hosts with real agents, once for each datapath, in sync again after every test."""

from collections.abc import Iterator

import pytest

from tests.support.clusters import Cluster, carried_by, eventually


@pytest.fixture(scope="module", params=["userspace", "ebpf"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd, host1 and host2 with an agent and a pod each: drawn in flanpy/lab/plan.py."""
    with carried_by(request.param, tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture
def healed(two: Cluster) -> Iterator[None]:
    """The test leaves the cluster as it found it."""
    yield
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again after the test")
    for host in ("host1", "host2"):
        eventually(lambda host=host: _has_no_problem(two, host), 15, f"{host} has no problem left")


def _has_no_problem(two: Cluster, host: str) -> bool:
    status = two.status(host)
    assert status["problems"] == [], (status["problems"], status.get("store"))
    return True
