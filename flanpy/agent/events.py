"""What the edges put on the agent's one queue; the loop alone reads it.

Frozen values without behaviour. Nothing here knows who sends or handles them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from flanpy.core.attached import AttachedPod
from flanpy.core.pod_claims import PodEffect
from flanpy.model import Record, RecordChange, RecordSet


@dataclass(frozen=True, slots=True)
class ConfigRead:
    """The network config as it stands in etcd; ``text`` None when there is none."""

    text: bytes | None


@dataclass(frozen=True, slots=True)
class ConfigTouched:
    """Somebody has written the network config, or may have while nobody watched: it is to be read again."""


@dataclass(frozen=True, slots=True)
class SubnetsListed:
    """The watcher has read all leases anew; changes that follow come after ``records.revision``."""

    records: RecordSet


@dataclass(frozen=True, slots=True)
class SubnetsChanged:
    """Changes of leases in revision order; an empty batch says that the watch lives."""

    changes: tuple[RecordChange, ...]


@dataclass(frozen=True, slots=True)
class PodsListed:
    """The watcher has read the pod registry anew."""

    records: RecordSet


@dataclass(frozen=True, slots=True)
class PodsChanged:
    """Changes of the pod registry in revision order."""

    changes: tuple[RecordChange, ...]


@dataclass(frozen=True, slots=True)
class PodsAttached:
    """The pods that are attached on this node. ``whole``: all of them; else there may be others, whose files could not be read yet."""

    pods: tuple[AttachedPod, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class PodOutcome:
    """What became of a write of the pod registry: ``record`` as it stands now; ``problem`` set when the store has failed."""

    effect: PodEffect
    record: Record | None = None
    done: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The watcher or a read has failed; ``denied`` means that an operator has to act."""

    message: str
    denied: bool


@dataclass(frozen=True, slots=True)
class LeaseOutcome:
    """What became of the leasing effect that was outstanding: an event for ``core.leasing.step``."""

    event: Any


@dataclass(frozen=True, slots=True)
class KernelChanged:
    """The monitor saw something that may concern us: ``what`` for the log at debug level."""

    what: Any


@dataclass(frozen=True, slots=True)
class RulesChanged:
    """Somebody has changed something in the firewall that may concern us."""


@dataclass(frozen=True, slots=True)
class DatapathLost:
    """The datapath process has ended: the next check starts another, and should not wait for its time."""


@dataclass(frozen=True, slots=True)
class ThreadEnded:
    """A thread that nothing starts again has ended by a defect."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM or SIGINT, by name."""

    signal: str


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """SIGHUP: options file and environment are to be read again."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the control socket or the health server; the loop puts the answer (plain JSON values) on ``reply``."""

    command: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reply: SimpleQueue[dict[str, Any]] = field(default_factory=SimpleQueue)


Event = (
    ConfigRead
    | ConfigTouched
    | SubnetsListed
    | SubnetsChanged
    | PodsListed
    | PodsChanged
    | PodsAttached
    | PodOutcome
    | StoreFailed
    | LeaseOutcome
    | KernelChanged
    | RulesChanged
    | DatapathLost
    | ThreadEnded
    | Stop
    | ReloadAsked
    | Ask
)
EventQueue = SimpleQueue[Event]
