"""Writes leases to the etcd of a lab from outside of it, through etcd's JSON gateway: fast, and without anything of an agent's.

A convergence is timed from the moment when etcd has acknowledged a write, so the writer must not be part of what is timed.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Any, Self

from flanpy.core.codec import encode_attributes, key_of
from flanpy.errors import LabError
from flanpy.lab.cluster import Lab
from flanpy.model import DEFAULT_PREFIX, NodeAttributes, Subnets

TRANSACTION_OPERATIONS = 128
"""etcd's own limit (--max-txn-ops)."""
CHANGES_A_SECOND = 100


class EtcdGateway:
    """A connection to a lab's etcd that stays open; not for several threads."""

    def __init__(self, lab: Lab) -> None:
        self._connection = http.client.HTTPConnection(str(lab.plan.services_address), 2379, timeout=10)
        with lab.sandbox.enter(None):
            self._connection.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def put_lease(self, subnet: IPv4Network, public_ip: IPv4Address) -> None:
        """Write a lease of flannel's udp backend that never expires; returns when etcd has acknowledged it."""
        self._call("kv/put", _put(subnet, public_ip))

    def delete_lease(self, subnet: IPv4Network) -> None:
        """Delete a lease; returns when etcd has acknowledged it."""
        self._call("kv/deleterange", {"key": _key(subnet)})

    def put_leases(self, leases: Sequence[tuple[IPv4Network, IPv4Address]]) -> None:
        """Write many leases, as many a transaction as etcd takes."""
        for start in range(0, len(leases), TRANSACTION_OPERATIONS):
            batch = leases[start : start + TRANSACTION_OPERATIONS]
            self._call("kv/txn", {"success": [{"requestPut": _put(subnet, public_ip)} for subnet, public_ip in batch]})

    def _call(self, method: str, body: dict[str, Any]) -> None:
        self._connection.request("POST", f"/v3/{method}", json.dumps(body))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise LabError(f"etcd of the lab: {method}: status {answer.status}: {text[:200]!r}")


def _key(subnet: IPv4Network) -> str:
    return base64.b64encode(f"{DEFAULT_PREFIX}/{key_of(Subnets(subnet))}".encode()).decode()


def _put(subnet: IPv4Network, public_ip: IPv4Address) -> dict[str, str]:
    value = encode_attributes(NodeAttributes(public_ip))
    return {"key": _key(subnet), "value": base64.b64encode(value).decode()}


def free_subnets(network: IPv4Network, taken: Sequence[IPv4Network]) -> Iterator[IPv4Network]:
    """The /24 subnets of a network that nobody has, from the second one on (where SubnetMin is), in order."""
    subnets = network.subnets(new_prefix=24)
    next(subnets)
    return (subnet for subnet in subnets if subnet not in taken)


class LeaseChanges:
    """Puts and deletes leases in turn, evenly, in a thread, while the block runs."""

    def __init__(self, etcd: EtcdGateway, leases: Sequence[IPv4Network], sink: IPv4Address) -> None:
        self.done = 0
        self._etcd = etcd
        self._leases = leases
        self._sink = sink
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        begin = time.monotonic()
        while self._leases and not self._stop.wait(max(0.0, begin + self.done / CHANGES_A_SECOND - time.monotonic())):
            turn, index = divmod(self.done, len(self._leases))
            if turn % 2 == 0:
                self._etcd.put_lease(self._leases[index], self._sink)
            else:
                self._etcd.delete_lease(self._leases[index])
            self.done += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
