"""The datapath: carries packets between the TUN device and the underlay by an immutable table.

The only package that imports the compiled modules. The rest of the agent knows the Protocol alone and does not care
which datapath runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from flanpy.model import Address, ForwardTable


@dataclass(frozen=True, slots=True)
class DatapathSettings:
    """What does not change while a datapath runs.

    ``tunnel_address`` and ``tunnel_address6`` are the sources of the ICMP errors that we send; None: the overlay does not have that
    family. ``underlay_address`` says by which family peers are reached; ``spin_us`` bounds the busy wait that follows traffic before a
    worker sleeps in poll. The MTU may change and so stands in the table.
    """

    device: str
    tunnel_address: IPv4Address | None
    underlay_address: Address
    port: int
    tunnel_address6: IPv6Address | None = None
    queues: int = 1
    source_check: bool = True
    spin_us: int = 150
    ebpf_bypass: bool = False
    """With ebpf: hand packets to the pods' bridge and take them there, past the host's forwarding, firewall and policy."""


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """Packets (inner, of real size: a superpacket counts as its segments) and bytes that met one verdict."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PeerCount:
    """What one peer was sent and has sent; packets that were dropped on either way are in ``dropped_*`` alone.

    ``dropped_out``: packets for it that the kernel would not send. ``dropped_in``: packets from it that were refused.
    """

    sent: VerdictCount
    received: VerdictCount
    dropped_out: int
    dropped_in: int


@dataclass(frozen=True, slots=True)
class DatapathStats:
    """Counters since the datapath started: per verdict by name, and others (system calls, wake-ups, ...) by name."""

    generation: int
    verdicts: dict[str, VerdictCount]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """The process that carries packets in userspace. ``ended`` says how the last one did that had to be started again."""

    pid: int
    adopted: bool
    restarts: int
    ended: str = ""


class Datapath(Protocol):
    """A running datapath."""

    kind: str
    """``userspace`` or ``ebpf``."""
    features: frozenset[str]
    """What this node's receiver can take, for the lease (FlanpyInfo.features)."""

    @property
    def degraded(self) -> tuple[str, ...]:
        """What it does without now, with the cures; may change while it runs."""

    @property
    def process(self) -> ProcessStatus | None:
        """The process that carries packets in userspace, None when they are carried in this one."""

    def publish(self, table: ForwardTable) -> None:
        """Forward by this table from now on; returns when every worker has it. No packet is lost by it."""

    def stats(self) -> DatapathStats:
        """Counters, read without disturbing the workers."""

    def peer_counts(self, peers: Sequence[Address]) -> Mapping[Address, PeerCount]:
        """What each of these peers was sent and has sent; counted by address, so that no new table and no other process changes it."""

    def check(self, *, closely: bool = True) -> None:
        """Put back what somebody has removed or killed; raise DatapathError when it cannot go on (TUN device gone), with the reason.

        Not ``closely``: at next to no cost, for once a second; what the kernel tells of (devices, addresses) is not looked at then.
        """

    def close(self) -> None:
        """Let go: what outlives us, a process or programs in the kernel, carries on. Safe to call twice."""

    def teardown(self) -> None:
        """Close, and remove what would outlive us."""
