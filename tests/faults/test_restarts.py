"""Agents die, stop and come back while probes go on: the datapath, the lease and the subnet stay."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.support.clusters import Cluster, eventually
from tests.support.probes import probes

pytestmark = [pytest.mark.usefixtures("healed"), pytest.mark.parametrize("two", ["ebpf"], indirect=True)]


def lease_of(two: Cluster, host: str) -> tuple[str, int]:
    """Subnet and create revision: equal as long as nobody had to lease anew."""
    record = two.get(two.key(host))
    assert record is not None
    return two.subnet(host), int(record["create_revision"])


def start(two: Cluster, host: str) -> float:
    """Start the agent of a host; seconds until it is ready."""
    started = time.monotonic()
    two.lab.start_agents([host])
    eventually(lambda: two.status(host)["ready"], 10, "it is ready")
    return time.monotonic() - started


def test_a_killed_agent_is_missed_by_no_packet(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 6: the agent is killed (-9).

    The datapath goes on with the last table; the next agent finds it running and adopts it, with device, addresses, routes and lease.
    Passes when: 0 probes lost, running agent again < 1 s later adopts the datapath.
    """
    before = lease_of(two, "host1")
    with probes(two) as stream:
        two.lab.stop_agent("host1", signal.SIGKILL)
        stream.wait(1000)
        back_s = start(two, "host1")
        stream.wait(500)
    assert stream.total.lost == 0
    assert lease_of(two, "host1") == before
    measured(f"{stream.total.words}; ready again {back_s:.1f} s after its start")


@pytest.mark.parametrize("order", ["one host", "both hosts"])
def test_a_restart_is_missed_by_no_packet(two: Cluster, order: str, measured: Callable[[str], None]) -> None:
    """Row 8: the agent is stopped by SIGTERM and started (an upgrade), on one host or on both at once.

    A stop leaves datapath, routes, rules and lease in place; the next start finds them as they should be and writes nothing.
    Passes when: 0 lost; lease and subnet unchanged.
    """
    hosts = ("host1", "host2") if order == "both hosts" else ("host1",)
    before = [lease_of(two, host) for host in hosts]
    with probes(two) as stream:
        for host in hosts:
            two.lab.stop_agent(host)
        stream.wait(300)
        back_s = max(start(two, host) for host in hosts)
        stream.wait(300)
    assert stream.total.lost == 0
    assert [lease_of(two, host) for host in hosts] == before
    measured(f"{stream.total.words}; ready again after {back_s:.1f} s")


def test_a_reload_is_missed_by_no_packet(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 8: the agent gets SIGHUP.

    It reads its options again, and what has changed takes effect; nothing has here.
    Passes when: 0 lost; lease and subnet unchanged.
    """
    before, pid = lease_of(two, "host1"), two.lab.agent_pid("host1")
    with probes(two) as stream:
        two.lab.signal_agent("host1", signal.SIGHUP)
        stream.wait(1000)
    assert stream.total.lost == 0
    assert (lease_of(two, "host1"), two.lab.agent_pid("host1")) == (before, pid)
    measured(stream.total.words)


def test_an_agent_that_hangs_is_missed_by_no_packet(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 8: the agent hangs (SIGSTOP) and goes on after a while.

    The datapath is no part of the process that hangs.
    Passes when: 0 lost; lease and subnet unchanged.
    """
    before = lease_of(two, "host1")
    with probes(two) as stream:
        two.lab.signal_agent("host1", signal.SIGSTOP)
        try:
            stream.wait(2000)
        finally:
            two.lab.signal_agent("host1", signal.SIGCONT)
        stream.wait(200)
    assert stream.total.lost == 0
    assert lease_of(two, "host1") == before
    measured(stream.total.words)
