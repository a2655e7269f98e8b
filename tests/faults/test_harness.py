"""The probes notice what the other tests of this folder say does not happen."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import Cluster, cluster, eventually
from tests.support.probes import probes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("logs"), hosts=2, pods=1) as running:
        yield running


def test_without_a_fault_every_probe_arrives_once_and_in_order(two: Cluster) -> None:
    with probes(two) as stream:
        stream.wait(500)
    total = stream.total
    assert (stream.losses, total.lost, total.duplicates, total.refused, total.reordered) == ((), 0, 0, 0, 0)
    assert len(stream.links) == 2
    assert all(count.sent == count.received >= 500 for count in stream.links)


def test_a_cable_that_is_pulled_is_seen_as_a_gap_of_lost_probes(two: Cluster) -> None:
    with probes(two) as stream:
        two.lab.cut("host2")
        stream.wait(200)
        two.lab.join("host2")
        stream.flow()
    assert stream.total.lost >= 100, "of 400 on two links; on a busy machine some of them were sent before and are counted late"
    assert stream.total.longest_gap_s > 0.05
    lost = stream.links[0].first_lost
    assert lost == tuple(range(lost[0], lost[0] + len(lost))), "one gap, not many"
    first, second = stream.losses
    assert first.startswith(f"host1-pod1 -> host2-pod1: {stream.links[0].words}, from ")
    assert f"Z on: numbers {lost[0]}, {lost[0] + 1}, " in first
    assert second.startswith("host2-pod1 -> host1-pod1: ")


def test_half_of_the_packets_lost_is_seen_as_that(two: Cluster) -> None:
    with probes(two) as stream:
        two.lab.impair("host1", loss_percent=50)
        stream.wait(300)
        two.lab.impair("host1", loss_percent=0)
    share = stream.total.lost / stream.total.sent
    assert 0.2 < share < 0.6


def test_a_stream_that_carries_nothing_is_an_error_and_not_a_success(two: Cluster, tmp_path: Path) -> None:
    two.lab.signal_agent("host2", signal.SIGSTOP)
    two.lab.cut("host2")
    try:
        with pytest.raises(AssertionError, match="probes arrive(.|\n)*host1-pod1, in 0.5 s: .*eth0.tx \\+"):
            with probes(two, flowing=False) as stream:
                stream.flow(within_s=0.3)
    finally:
        two.lab.join("host2")
        two.lab.signal_agent("host2", signal.SIGCONT)
    eventually(lambda: two.ping("host1-pod1", "host2-pod1") == 3, 15, "the pods reach each other again")
