"""What ``ping``, ``trace``, ``capture`` and the bug report ask before they begin: the agent's answers put together, and this machine.

Runs in the operator's process, in the network namespace it was started in; the agent is only asked. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flanpy.agent.client import ask
from flanpy.agent.cluster_map import ClusterMap, Target
from flanpy.agent.host_names import addresses_of
from flanpy.agent.trace import Carrier
from flanpy.errors import AgentAbsent, FlanpyError, PlatformError, UsageError
from flanpy.kernel.lookup import Behind, Way, find_behind, find_way, is_bridge
from flanpy.kernel.netlink import Kernel
from flanpy.model import Address


@dataclass(frozen=True, slots=True)
class Inquiry:
    """The agent's answers at one moment."""

    status: dict[str, Any]
    cluster: ClusterMap
    carrier: Carrier

    def find(self, text: str) -> Target:
        """What the operator means: as ``ClusterMap.find``, or the node or pod that a host name leads to. Raises UsageError."""
        try:
            return self.cluster.find(text)
        except UsageError:
            for address in addresses_of(text):
                target = self.cluster.find(str(address))
                if target.node is not None:
                    return replace(target, name=f"{text} ({address})")
            raise


class Machine:
    """This machine, as ``trace.Look`` asks it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def way(self, destination: Address, source: Address | None = None, arriving: str = "") -> Way:
        """The kernel's route."""
        return find_way(self._kernel, destination, source, arriving)

    def behind(self, address: Address, device: str) -> Behind | None:
        """Who has an address on a link."""
        return find_behind(self._kernel, address, device)

    def is_bridge(self, device: str) -> bool:
        """Whether a device is a bridge."""
        return is_bridge(self._kernel, device)


def inquire(run_dir: Path) -> Inquiry:
    """Ask the agent. Raises AgentAbsent, or PlatformError while it has no lease: then there is no overlay to look at."""
    status = ask(run_dir, "status", arguments={"brief": True})
    if status["lease"] is None or status["datapath"] is None:
        why = status["problems"][0] if status["problems"] else "it has just been started"
        raise PlatformError(f"this node is not part of the overlay yet: {why}")
    cluster = ClusterMap.of(status, ask(run_dir, "peers"), ask(run_dir, "routes"), _pods(run_dir))
    datapath = status["datapath"]
    carrier = Carrier(
        status["backend"], tuple(status["devices"]), datapath["table_generation"], datapath["kind"], status["uplink"]["name"]
    )
    return Inquiry(status, cluster, carrier)


def _pods(run_dir: Path) -> list[dict[str, Any]]:
    """The pod registry, where the agent keeps one."""
    try:
        return list(ask(run_dir, "pods")["pods"])
    except AgentAbsent:
        raise
    except (FlanpyError, KeyError):
        return []


@contextmanager
def machine() -> Iterator[Machine]:
    """The namespace of the calling thread."""
    with Kernel() as kernel:
        yield Machine(kernel)
