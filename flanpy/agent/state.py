"""What the agent knows: one mutable value of the loop's thread.

``loop``, ``sayings``, ``config_reader``, ``members`` and ``own_lease`` change it, ``report`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flanpy.agent.events import StoreFailed
from flanpy.agent.machine import Outcome
from flanpy.agent.passes import Passes
from flanpy.agent.planner import Plan
from flanpy.agent.pods import PodKeeper
from flanpy.agent.said import Allowance, Refused, Said
from flanpy.core import membership
from flanpy.core.lease_events import LeasingState
from flanpy.model import KeptLease, NetworkConfig

CONFIG_RETRY_S = (0.5, 10.0)
"""Least and most wait before the network config is read again when there is none, or a bad one."""
READING, WRITING = "reading", "writing"
"""Who meets the store: the watcher and the reader of the network config; the keeper of our own lease."""


@dataclass(slots=True)
class State:
    """All that the agent knows; only the loop's thread touches it."""

    config_text: bytes | None = None
    config: NetworkConfig | None = None
    config_problem: str | None = "the network config has not been read yet"
    config_wait_s: float = CONFIG_RETRY_S[0]
    members: membership.Membership | None = None
    kept: Mapping[str, KeptLease] = field(default_factory=dict)
    """Leases that have vanished from etcd and are still acted by (``core.grace``)."""
    lease: LeasingState | None = None
    store_faults: dict[str, StoreFailed] = field(default_factory=dict)
    """What has failed at the store last time, by who has met it (READING, WRITING): a watch that lives does not hide refused writes."""
    last_store_word_s: float | None = None
    plan: Plan | None = None
    outcome: Outcome | None = None
    passes: Passes = field(default_factory=Passes)
    generation: int = 0
    dirty: bool = False
    look_at_underlay: bool = False
    failures: int = 0
    passed_s: float = 0.0
    said: Said = field(default_factory=Said)
    allowance: Allowance = field(default_factory=Allowance)
    refused: Refused = field(default_factory=Refused)
    pods: PodKeeper | None = None
    defect: str | None = None
    """Which thread has ended that nothing starts again; it stays until the agent is restarted."""
    timers: dict[str, float] = field(default_factory=dict)
    """When the loop does what next, by name, on the monotonic clock."""

    @property
    def store_fault(self) -> StoreFailed | None:
        """The worst of the store's faults: what an operator has to mend comes first."""
        return max(self.store_faults.values(), key=lambda fault: fault.denied, default=None)
