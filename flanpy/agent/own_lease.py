"""Our own lease, as the loop sees it: feeds ``core.leasing`` with events and carries its effects to the store.

Also keeps what the lease says of this node up to date: addresses, and what the datapath can take.

Called by the loop's thread. Decides nothing: the rules are in ``core.leasing``.
"""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import replace
from ipaddress import IPv6Address

from flanpy import backends
from flanpy.agent.events import EventQueue, LeaseOutcome
from flanpy.agent.executor import Executor
from flanpy.agent.logs import event
from flanpy.agent.machine import Machine
from flanpy.agent.peer_paths import PeerPaths
from flanpy.agent.state import State
from flanpy.agent.underlay import Underlay
from flanpy.config.options import AgentOptions
from flanpy.core import leasing
from flanpy.core.lease_events import Pending
from flanpy.core.peer_probes import FEATURE
from flanpy.errors import InterfaceError
from flanpy.model import FlanpyInfo, NetworkConfig, NodeAttributes

log = logging.getLogger(__name__)

RELEASE_S = 3.0
"""How long the end of the process may wait for etcd to take the lease back."""


class OwnLease:
    """Keeps ``state.lease``; what the lease says of this node is in the identity that it holds."""

    def __init__(
        self,
        state: State,
        identity: leasing.Identity,
        options: AgentOptions,
        underlay: Underlay,
        machine: Machine,
        executor: Executor,
        paths: PeerPaths,
    ) -> None:
        self._state = state
        self._identity = identity
        self._options = options
        self._underlay = underlay
        self._machine = machine
        self._executor = executor
        self._paths = paths

    def identify(self, config: NetworkConfig) -> None:
        """Let our lease say what the backend wants it to. Raises ConfigError, InterfaceError or PlatformError when this node cannot."""
        backend = backends.find(config.backend.type)
        facts = self._machine.facts(self._identity.node_id, config, self._options.state_dir)
        base = replace(self._identity.attributes, public_ipv6=self._public_ipv6(config))
        self._must_reach(backend.reached_by(config), base, config.backend.type)
        attributes = backend.attributes(base, config, facts)
        known = attributes.flanpy or FlanpyInfo(self._identity.node_id)
        said = replace(known, features=known.features | self._paths.features | self._machine.features_left(config))
        self._identity = replace(self._identity, attributes=replace(attributes, flanpy=said))

    def _public_ipv6(self, config: NetworkConfig | None) -> IPv6Address | None:
        """The IPv6 address that peers reach us by; one of the uplink's own only where the cluster has IPv6, or we have nothing else."""
        uplink = self._underlay.uplink
        wanted = uplink.address is None or (config is not None and config.enable_ipv6)
        return self._options.public_ipv6 or (uplink.address6 if wanted else None)

    def _must_reach(self, versions: tuple[int, ...], attributes: NodeAttributes, backend: str) -> None:
        """Raises InterfaceError when the underlay lacks a family that the backend sends by."""
        addresses = {4: attributes.public_ip, 6: attributes.public_ipv6}
        for version in versions:
            if addresses[version] is None:
                flag = "--public-ip" if version == 4 else "--public-ipv6"
                raise InterfaceError(
                    f"{self._underlay.uplink.name}: has no IPv{version} address, by which {backend} nodes of this network reach each "
                    f"other; give it one, choose another --iface, or name the node's address by {flag}"
                )

    def start(self, config: NetworkConfig) -> None:
        """Begin to look for a lease in this network."""
        self._state.lease, effects = leasing.start(self._identity, config, time.monotonic())
        self._do(effects)

    def feed(self, item: leasing.Event) -> None:
        """One event for ``core.leasing``; without effect before ``start``."""
        state = self._state
        if state.lease is None:
            return
        before = state.lease.held
        state.lease, effects = leasing.step(state.lease, item, time.monotonic())
        self._do(effects)
        if state.lease.held != before:
            state.dirty = True

    def _do(self, effects: tuple[leasing.Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, leasing.Say):
                log.log(logging.getLevelName(effect.level.upper()), "%s", effect.message, extra=event(effect.event))
            else:
                self._executor.submit(effect)

    def follow_underlay(self) -> None:
        """Register anew when peers have to reach us by another address."""
        address = self._options.public_ip or self._underlay.uplink.address
        self._change(replace(self._identity.attributes, public_ip=address, public_ipv6=self._public_ipv6(self._state.config)))

    def announce(self, features: frozenset[str] | None) -> None:
        """Let the lease say what the datapath that runs now can take, and that we answer probes, if it says something else."""
        said = self._identity.attributes.flanpy
        if said is None:
            return
        if features is None:  # no datapath of ours says anything
            features = frozenset(name for name in said.features if not name.startswith(FEATURE))
        wanted = features | self._paths.features
        if said.features != wanted:
            self._change(replace(self._identity.attributes, flanpy=replace(said, features=wanted)))

    def _change(self, attributes: NodeAttributes) -> None:
        if attributes != self._identity.attributes:
            self._identity = replace(self._identity, attributes=attributes)
            self.feed(leasing.AttributesChanged(attributes))

    def release(self, events: EventQueue) -> None:
        """Give the lease back; waits RELEASE_S at most for the outcome among the events."""
        deadline_s = time.monotonic() + RELEASE_S
        self.feed(leasing.Release())
        while self._state.lease is not None and isinstance(self._state.lease.phase, Pending):
            try:
                item = events.get(timeout=deadline_s - time.monotonic())
            except (queue.Empty, ValueError):
                log.warning("the lease was not given back: etcd has not answered", extra=event("release_failed"))
                return
            if isinstance(item, LeaseOutcome):
                self.feed(item.event)
