"""The values of the leasing state machine: who we are, what can happen, what it wants done, and its state. No behaviour.

``core.leasing`` has the rules and offers all these names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from flanpy.model import LEASE_TTL_S, Address, Lease, NetworkConfig, NodeAttributes, Record, RecordChange, RecordSet, Subnets


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are and what our lease should say.

    ``previous`` is the subnet of an earlier run (subnet.env, which does not survive a reboot); ``pick(n)`` gives a number from
    0 to n - 1 and is the only source of chance.
    """

    node_id: str
    attributes: NodeAttributes
    previous: Subnets | None = None
    ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600.0
    pick: Callable[[int], int] = field(kw_only=True, compare=False, repr=False)


# ------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Listed:
    """All leases: the result of ``List``, or a resync that the watcher made by itself."""

    records: RecordSet


@dataclass(frozen=True, slots=True)
class Created:
    """Result of ``Create``; None: somebody was faster."""

    record: Record | None


@dataclass(frozen=True, slots=True)
class Replaced:
    """Result of ``Replace``; None: the key is no longer at the expected revision."""

    record: Record | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """Result of ``Delete``: whether the key was there at the expected revision."""

    done: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The effect that was outstanding has failed or timed out; a write may have been done all the same."""

    message: str
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """Changes that the watch saw, in revision order."""

    changes: tuple[RecordChange, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; wanted at ``deadline(state)``, harmless at any time."""


@dataclass(frozen=True, slots=True)
class AttributesChanged:
    """What our lease should say has changed: another address, other features."""

    attributes: NodeAttributes


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The network config has changed; the held subnet may no longer fit."""

    config: NetworkConfig


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back (a reservation stays) and do nothing more."""


Event = Listed | Created | Replaced | Deleted | Failed | Changed | Tick | AttributesChanged | ConfigChanged | Release


# ------------------------------------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class List:
    """List all leases."""


@dataclass(frozen=True, slots=True)
class Create:
    """Create a key that must not exist."""

    key: str
    value: bytes
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Write a key that must still be at that revision; ``ttl_s`` 0 leaves it without expiry."""

    key: str
    value: bytes
    expected_mod_revision: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key that must still be at that revision."""

    key: str
    expected_mod_revision: int


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log. ``level`` is debug, info, warning or error; ``event`` a stable word for machines."""

    level: str
    event: str
    message: str


StoreEffect = List | Create | Replace | Delete
Effect = StoreEffect | Say


# ------------------------------------------------------------------------------------------------ state


class Action(Enum):
    """What the next Tick does."""

    LIST = auto()
    RENEW = auto()
    CLAIM = auto()
    NOTHING = auto()


class Purpose(Enum):
    """Why an effect is outstanding."""

    LIST = auto()
    ACQUIRE = auto()  # a new key
    ADOPT = auto()  # a key that is ours from an earlier run, or flanneld's on this machine
    RENEW = auto()
    DEFEND = auto()  # somebody wrote our key
    CONTEST = auto()  # mark a lease that has our node id and another address
    CLAIM = auto()  # nobody answered the mark
    DISCARD = auto()  # a lease that no longer fits
    LEAVE = auto()  # say in our lease that it is about to be deleted
    RELEASE = auto()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing is outstanding; ``action`` is to be done at ``at_s`` (infinity: never)."""

    action: Action
    at_s: float


@dataclass(frozen=True, slots=True)
class Pending:
    """One effect is outstanding since ``sent_s``."""

    effect: StoreEffect
    purpose: Purpose
    sent_s: float


@dataclass(frozen=True, slots=True)
class LeasingState:
    """All that is known about our lease. ``held`` is the lease we act by, ``problem`` what an operator should know."""

    identity: Identity
    config: NetworkConfig
    phase: Waiting | Pending
    held: Lease | None = None
    problem: str | None = None
    expires_s: float | None = None
    """Earliest expiry of the held lease on our clock: the time its last write was sent, plus the TTL. None: never."""
    preferred: Subnets | None = None
    addresses: frozenset[Address] = frozenset()
    """Every address that this process has had."""
    attempt: int = 0
    """Failures or lost races in a row, for the back-off."""
    away: bool = False
    """The store did not answer last time."""
    unsure: bool = False
    """A write has failed and may have been done all the same, so a record of ours need not be another's."""
    noticed: RecordChange | None = None
    """The latest change of the key concerned, not judged yet."""
    relist: bool = False
    """The leases are to be listed once nothing is outstanding."""
    contest: Lease | None = None
    """A lease with our node id that we have marked, as it stands since."""
    refusals: int = 0
    """How often in a row another living node has defended our node id."""
    defended_s: float = float("-inf")
    """When we last took over a key that existed, or wrote it back; soon after, another's write of it means that we yield."""
    gone_s: float = float("-inf")
    """When our key was last found deleted."""
    discard: tuple[Lease, ...] = ()
    """Leases of ours that do not fit the config, to be deleted once there is another."""
    releasing: bool = False
