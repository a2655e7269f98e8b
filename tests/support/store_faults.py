"""Faults of a lab's etcd and of the way to it, injected for real; every block undoes what it did, also after a failure."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flanpy.model import DEFAULT_PREFIX
from tests.support.clusters import NETWORK, Cluster, eventually

DATA = "/run/lab/etcd"
GONE_BY = """
add table inet no_etcd
add chain inet no_etcd out {{ type filter hook output priority -300; }}
add rule inet no_etcd out tcp dport 2379 {verdict}
"""


def hang(two: Cluster) -> None:
    """SIGSTOP: the connections stay open, nothing answers."""
    pid = two.lab.etcd_pid()
    assert pid is not None
    two.sandbox.signal(pid, signal.SIGSTOP)


def go_on(two: Cluster) -> None:
    """The end of ``hang``."""
    pid = two.lab.etcd_pid()
    assert pid is not None
    two.sandbox.signal(pid, signal.SIGCONT)


@contextmanager
def cut_off(two: Cluster, host: str) -> Iterator[None]:
    """One host's packets to etcd are dropped; everything else goes on."""
    two.sandbox.run(host, ["nft", GONE_BY.format(verdict="drop")])
    try:
        yield
    finally:
        two.sandbox.run(host, ["nft", "delete table inet no_etcd"])


def wipe(two: Cluster) -> None:
    """etcd is killed and comes back with nothing but the network config."""
    two.lab.stop_etcd(signal.SIGKILL)
    shutil.rmtree(two.sandbox.path(DATA))
    two.lab.start_etcd()
    two.lab.put_network_config(NETWORK)


def back_up(two: Cluster) -> None:
    """A copy of etcd's data as it is now."""
    two.lab.stop_etcd()
    shutil.copytree(two.sandbox.path(DATA), two.sandbox.path(f"{DATA}.backup"))
    start(two)


def restore(two: Cluster) -> None:
    """etcd is killed and comes back with the data of ``back_up``."""
    two.lab.stop_etcd(signal.SIGKILL)
    shutil.rmtree(two.sandbox.path(DATA))
    two.sandbox.path(f"{DATA}.backup").rename(two.sandbox.path(DATA))
    start(two)


def start(two: Cluster) -> None:
    """Start etcd and wait until it answers."""
    two.lab.start_etcd()
    eventually(lambda: two.etcd("kv/range", {"key": "AA=="}).get("header"), 10, "etcd answers")


def expire(two: Cluster, key: str) -> None:
    """End the time to live of a key: etcd revokes its lease, which is all that it does at the end of 24 hours too."""
    found = two.get(key)
    assert found is not None, f"{key} is not there"
    two.etcd("lease/revoke", {"ID": found["lease"]})


def attributes(address: str, node: str | None = None, *features: str) -> str:
    """A lease's value; without a node id it is a flanneld's."""
    data = {"BackendData": {"flanpy": {"node": node, "features": features}}} if node else {}
    return json.dumps({"PublicIP": address, "PublicIPv6": None, **data})


def leave(two: Cluster, key: str, address: str) -> None:
    """Delete a lease as a node does that says so first."""
    two.put(key, attributes(address, "leaver", "leaving"))
    two.delete(key)


def leases(two: Cluster) -> dict[str, str]:
    """Subnet to address, of every lease in etcd."""
    start_key, end_key = (f"{DEFAULT_PREFIX}/subnets{mark}".encode() for mark in "/0")
    body = {"key": base64.b64encode(start_key).decode(), "range_end": base64.b64encode(end_key).decode()}
    found: dict[str, str] = {}
    for item in two.etcd("kv/range", body).get("kvs", []):
        key = base64.b64decode(item["key"]).decode().rpartition("/")[2]
        found[key.replace("-", "/")] = json.loads(base64.b64decode(item["value"]))["PublicIP"]
    return found


def peers(two: Cluster, host: str) -> dict[str, str]:
    """Subnet to address, of every peer of a host's agent."""
    return {peer["subnets"]: peer["public_ip"] for peer in two.status(host)["peers"]}


def etcd_state(two: Cluster, host: str) -> str:
    """How an agent finds etcd: ok, degraded, denied."""
    return str(two.status(host)["etcd"]["state"])


def in_step(two: Cluster, host: str) -> bool:
    """Whether an agent's peers are etcd's leases, without its own."""
    wanted = {subnet: address for subnet, address in leases(two).items() if subnet != two.subnet(host)}
    return peers(two, host) == wanted


def no_problem(two: Cluster, host: str) -> bool:
    """True; an assertion that names the problems where an agent has any."""
    problems = two.status(host)["problems"]
    assert problems == [], f"{host} complains: {problems}"
    return True


def heal(two: Cluster, hosts: Iterable[str]) -> None:
    """Wait until these agents are in step with etcd and have nothing to complain of."""
    for host in hosts:
        eventually(lambda host=host: no_problem(two, host), 20, f"{host} has no problem left")
        eventually(lambda host=host: in_step(two, host), 20, f"{host} is in step with etcd")


def seconds_until(check: Callable[[], Any], within_s: float, what: str) -> float:
    """Poll until true; the seconds that it took, with those that one look at an agent takes (about 0.3)."""
    started = time.monotonic()
    eventually(check, within_s, what)
    return time.monotonic() - started
