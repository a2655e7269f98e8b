"""Pings a node or a pod through the overlay and measures how large a packet gets there whole.

The echo requests go the way of every packet of this node: by its routes into the tunnel, so they are counted there like any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanpy.agent.cluster_map import Target
from flanpy.agent.echo import HEADERS_BYTES, Echo
from flanpy.agent.inquiry import Inquiry, inquire, machine
from flanpy.agent.path_mtu import close_in
from flanpy.agent.trace import Step, trace
from flanpy.errors import PlatformError
from flanpy.model import Address

SMALL_BYTES = 84
"""What ping(8) sends: 56 bytes of data."""
LEAST_BYTES = {4: 68, 6: 1280}
"""Below this no path is taken for one (RFC 791, RFC 8200)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be pinged and which way it goes; ``mtu_bytes`` is what this node takes for the largest packet of a pod."""

    target: Target
    address: Address
    steps: tuple[Step, ...]
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came back. ``mtu_bytes`` None: not measured, or nothing was answered."""

    sent: int
    rtts_s: tuple[float, ...]
    mtu_bytes: int | None


def plan(run_dir: Path, text: str) -> Plan:
    """Find the target and the way there. Raises AgentAbsent, UsageError for a target that is not known, PlatformError."""
    found = inquire(run_dir)
    target = found.find(text)
    address = reachable(found, target)
    with machine() as look:
        source = look.way(address).source
        steps = trace(source, address, found.cluster, found.carrier, look) if source is not None else []
    return Plan(target, address, tuple(steps), found.status["mtu_bytes"])


def reachable(found: Inquiry, target: Target) -> Address:
    """The address to ping. A node without a tunnel device (host-gw, alloc, extension) has its subnet's first address nowhere."""
    if target.is_node and target.node is not None and not found.carrier.devices:
        return target.node.public_ip
    return target.address


def ping(address: Address, count: int, interval_s: float, wait_s: float, size_bytes: int = SMALL_BYTES) -> Iterator[float | None]:
    """One round trip after the other, seconds; None for one that was lost. Raises PlatformError without CAP_NET_RAW or a way there."""
    try:
        with Echo(address) as echo:
            for number in range(count):
                started_s = time.monotonic()
                yield echo.ask(max(size_bytes, HEADERS_BYTES[address.version]), wait_s)
                if number + 1 < count:
                    time.sleep(max(0.0, started_s + interval_s - time.monotonic()))
    except OSError as error:
        raise PlatformError(_explained(address, error)) from error


def largest(address: Address, mtu_bytes: int) -> int | None:
    """The largest packet that is answered, up to ``mtu_bytes``; None when none is. Raises PlatformError."""
    try:
        with Echo(address) as echo:
            return close_in(echo, mtu_bytes, min(LEAST_BYTES[address.version], mtu_bytes)).mtu_bytes
    except OSError as error:
        raise PlatformError(_explained(address, error)) from error


def _explained(address: Address, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"ping {address}: needs root or CAP_NET_RAW"
    return f"ping {address}: {error.strerror or error}"
