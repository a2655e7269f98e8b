"""The probes of the paths to our peers, as the loop sees them: whom to ask follows from the plan, what was found goes into the answers.

Called by the loop's thread; ``PeerProber`` has a thread of its own. Without probes (``--peer-probe-interval 0``) nothing is asked, answered
or announced. Whether a path works changes no route.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from flanpy.agent.peer_prober import PeerProber
from flanpy.agent.planner import Plan
from flanpy.config.options import AgentOptions
from flanpy.core.peer_probes import FEATURE, PeerHealth, Target, probe_port
from flanpy.model import Address, Lease, Peer

SHOWN = 10
"""Paths that are named where they are down; ``flanpy peers`` has them all."""
_BAD = ("no agent", "path down", "node down")
_MEANINGS = {
    "no agent": "packets get there, but no agent answers",
    "path down": "no probe comes through the overlay, though the node may be up",
    "node down": "neither the overlay nor the node's own address answers",
}
Alike = tuple[Address | None, dict[Address, Target]]


class PeerPaths:
    """Keeps the prober aimed; ``close`` ends it."""

    def __init__(self, interval_s: float, port: int) -> None:
        self._port = port
        self._interval_s = interval_s
        self._prober: PeerProber | None = None
        self._aim: Alike = (None, {})
        self._start()

    def use(self, options: AgentOptions) -> None:
        """Ask by these options from now on."""
        self.close()
        self._interval_s, self._port = options.peer_probe_interval, options.peer_probe_port
        self._start()

    def _start(self) -> None:
        if self._interval_s:
            self._prober = PeerProber(self._interval_s, self._port)
            self._prober.start()
            self._prober.aim(*self._aim)

    def close(self) -> None:
        """Stop asking and answering."""
        if self._prober is not None:
            self._prober.close()
        self._prober = None

    @property
    def features(self) -> frozenset[str]:
        """What our lease says about probes."""
        return frozenset({f"{FEATURE}{self._port}"}) if self._interval_s else frozenset()

    def follow(self, plan: Plan, own: Lease) -> None:
        """Ask the peers of this plan from now on."""
        found = _aim(plan, own)
        if found != self._aim:
            self._aim = found
            if self._prober is not None:
                self._prober.aim(*found)

    def report(self) -> Report | None:
        """What is known now; None without probes."""
        return None if self._prober is None else Report(self._prober.health(), self._interval_s, time.monotonic())


def _aim(plan: Plan, own: Lease) -> Alike:
    """From which address, and whom. Nodes with a device of ours have their subnet's first address on it; others are asked at their own."""
    tunnelled = plan.desired.tunnel is not None or bool(plan.desired.links)
    if not tunnelled and not plan.desired.routes:
        return None, {}  # alloc, extension: nobody knows how packets get there
    own_address = _address(own, tunnelled)
    targets = (_target(peer, own_address, tunnelled) for peer in plan.view.peers)
    return own_address, {target.address: target for target in targets if target is not None}


def _target(peer: Peer, own: Address, tunnelled: bool) -> Target | None:
    port = probe_port(peer.attributes.flanpy.features) if peer.attributes.flanpy else None
    address = _address(peer.lease, tunnelled)
    if port is None or address.version != own.version:
        return None
    return Target(address, port, peer.hop.address)


def _address(lease: Lease, tunnelled: bool) -> Address:
    subnet = lease.subnets.ipv4 or lease.subnets.ipv6
    assert subnet is not None
    return subnet.network_address if tunnelled else lease.attributes.address


class Report:
    """What is known of the paths at one moment, for the answers of the control socket."""

    def __init__(self, health: Mapping[Address, PeerHealth], interval_s: float, now_s: float) -> None:
        self._health = health
        self._interval_s = interval_s
        self._now_s = now_s

    def of(self, peer: Peer) -> dict[str, Any] | None:
        """The path to one peer; None: it is not asked, for it runs flanneld or has probes off."""
        found = self._find(peer)
        if found is None:
            return None
        return {
            "state": found.word,
            "rtt_ms": None if found.rtt_s is None else round(1e3 * found.rtt_s, 3),
            "last_seen_s_ago": None if found.last_seen_s is None else round(self._now_s - found.last_seen_s, 3),
            "loss": round(found.loss, 3),
            "sent": found.sent,
            "lost": found.lost,
        }

    def _find(self, peer: Peer) -> PeerHealth | None:
        return self._health.get(_address(peer.lease, True)) or self._health.get(_address(peer.lease, False))

    def summary(self) -> dict[str, Any]:
        """How many paths are how, and the longest round trip."""
        words = Counter(found.word for found in self._health.values())
        rtts = [found.rtt_s for found in self._health.values() if found.rtt_s is not None]
        return {
            "interval_s": self._interval_s,
            "probed": len(self._health),
            "states": dict(sorted(words.items())),
            "rtt_ms_most": round(1e3 * max(rtts), 3) if rtts else None,
        }

    def warnings(self, peers: Iterable[Peer]) -> list[str]:
        """A line for each path that is down, ``SHOWN`` at most."""
        bad = [(peer, found) for peer in peers if (found := self._find(peer)) is not None and found.word in _BAD]
        lines = [f"peer {peer.subnets} ({peer.attributes.address}): {_MEANINGS[found.word]}" for peer, found in bad[:SHOWN]]
        return lines + ([f"and {len(bad) - SHOWN} more peers whose path is down"] if len(bad) > SHOWN else [])
