"""Agents stop, hang and come back while probes go on (tests/netns/test_datapath_process.py has them killed)."""

import signal
import time
from collections.abc import Callable

import pytest

from tests.support.clusters import Cluster, eventually
from tests.support.probes import probes

pytestmark = pytest.mark.usefixtures("healed")


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


def test_agents_of_all_hosts_that_restart_are_missed_by_no_packet(two: Cluster, measured: Callable[[str], None]) -> None:
    """Row 8: the agents of both hosts are stopped by SIGTERM and started at once.

    A stop leaves datapath, routes, rules and lease in place; the next start finds them as they should be and writes nothing.
    Passes when: 0 lost; lease and subnet unchanged.
    """
    hosts = ("host1", "host2")
    before = [lease_of(two, host) for host in hosts]
    with probes(two) as stream:
        for host in hosts:
            two.lab.stop_agent(host)
        stream.wait(300)
        back_s = max(start(two, host) for host in hosts)
        stream.wait(300)
    assert stream.losses == ()
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
    assert stream.losses == ()
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
    assert stream.losses == ()
    assert lease_of(two, "host1") == before
    measured(stream.total.words)
