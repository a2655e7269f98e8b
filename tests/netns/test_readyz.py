"""``/readyz`` is ready only while the node is: it goes back when the datapath cannot run, and comes again; ``/healthz`` stays well."""

import os
import signal
import sys
from pathlib import Path

from tests.support.clusters import Agent, Cluster, bare, eventually

CODE = """
import sys, urllib.error, urllib.request
for path in ("/healthz", "/readyz"):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8471" + path, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def codes(host: Cluster) -> list[str]:
    return host.sandbox.run("host1", [sys.executable, "-c", CODE]).stdout.split()


def test_a_node_that_cannot_carry_packets_is_no_longer_ready(tmp_path: Path) -> None:
    """Somebody puts a device of another kind in the place of ours: alive, not ready; and ready again when it has gone."""
    flags = ("--healthz-port=8471", "--healthz-ip=127.0.0.1", "--datapath=userspace")
    with bare(tmp_path) as host, Agent(host, *flags) as agent:
        agent.subnet()
        eventually(lambda: codes(host) == ["200", "200"], 15, "ready")
        agent.process.send_signal(signal.SIGSTOP)  # it would be quicker than we are
        try:
            host.sandbox.run("host1", ["sh", "-euc", "ip link del flannel0; ip link add flannel0 type bridge"])
        finally:
            os.kill(agent.process.pid, signal.SIGCONT)  # nsenter, which has stopped with its child
            agent.process.send_signal(signal.SIGCONT)
        eventually(lambda: codes(host) == ["200", "503"], 20, "not ready any more")
        host.sandbox.run("host1", ["ip", "link", "del", "flannel0"])
        eventually(lambda: codes(host) == ["200", "200"], 30, "ready again")
