"""The agent's loop: the one owner of state. Edges put events on its queue; it decides with ``core`` and acts through ``Machine``.

    queue -> [drain all that wait] -> membership, leasing -> desired state -> converge -> subnet.env -> ready

Level-triggered: every pass computes the whole desired state from what is known and reconciles the machine with it, so start-up, a resync
after compaction and a repair after somebody flushed the routes are the same code. A failed pass is tried again with back-off.
Principle: fail static. Whatever happens to etcd, the machine keeps forwarding by the last known state.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Any

from flanpy import backends
from flanpy.agent.commands import carry_out
from flanpy.agent.events import (
    Ask,
    ConfigRead,
    ConfigTouched,
    Event,
    EventQueue,
    KernelChanged,
    LeaseOutcome,
    RulesChanged,
    Stop,
    StoreFailed,
    SubnetsChanged,
    SubnetsListed,
)
from flanpy.agent.executor import Executor, ReadConfig
from flanpy.agent.logs import event
from flanpy.agent.machine import Machine, Outcome
from flanpy.agent.notify import ServiceManager
from flanpy.agent.passes import Passes
from flanpy.agent.planner import Plan, make_plan
from flanpy.agent.readiness import Readiness
from flanpy.agent.report import answer, counted, summary
from flanpy.agent.said import Said
from flanpy.agent.underlay import Underlay
from flanpy.config.network import parse_network_config
from flanpy.config.options import AgentOptions
from flanpy.core import leasing, membership
from flanpy.core.lease_events import LeasingState, Pending
from flanpy.errors import ConfigError, FlanpyError, InterfaceError, PlatformError, ResourceBusy
from flanpy.model import NetworkConfig

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How often the datapath is asked whether it lives."""
RESYNC_S = 30.0
"""How often the machine is compared with the desired state though nothing was heard."""
CONFIG_RETRY_S = (0.5, 10.0)
"""Least and most wait before the network config is read again when there is none, or a bad one."""
CONFIG_REREAD_S = 60.0
"""How often a good network config is read again, should the watch have missed a change."""
CONVERGE_RETRY_S = (0.2, 10.0)
"""Least and most wait before a pass that had problems is tried again."""
RELEASE_S = 3.0
"""How long the end of the process may wait for etcd to take the lease back."""


@dataclass(slots=True)
class State:
    """All that the agent knows; only the loop's thread touches it."""

    config_text: bytes | None = None
    config: NetworkConfig | None = None
    config_problem: str | None = "the network config has not been read yet"
    config_wait_s: float = CONFIG_RETRY_S[0]
    members: membership.Membership | None = None
    lease: LeasingState | None = None
    store_problem: str | None = None
    store_denied: bool = False
    last_store_word_s: float | None = None
    plan: Plan | None = None
    outcome: Outcome | None = None
    passes: Passes = field(default_factory=Passes)
    generation: int = 0
    dirty: bool = False
    look_at_underlay: bool = False
    failures: int = 0
    said: Said = field(default_factory=Said)
    refused: dict[str, str] = field(default_factory=dict)


class Loop:
    """Runs until a Stop event; ``run`` returns the name of the signal that ended it."""

    def __init__(
        self,
        options: AgentOptions,
        underlay: Underlay,
        identity: leasing.Identity,
        machine: Machine,
        executor: Executor,
        readiness: Readiness,
        events: EventQueue,
    ) -> None:
        self._options = options
        self._underlay = underlay
        self._identity = identity
        self._machine = machine
        self._executor = executor
        self._readiness = readiness
        self._events = events
        self._state = State()
        self._started_s = time.monotonic()
        self._timers: dict[str, float] = {"check": self._started_s + CHECK_S, "resync": self._started_s + RESYNC_S}
        self._stopped_by: str | None = None
        self._manager = ServiceManager(os.environ, CHECK_S)
        self._timers["manager"] = self._started_s + self._manager.interval_s

    def run(self) -> str:
        """Handle events until told to stop."""
        self._executor.submit(ReadConfig())
        while self._stopped_by is None:
            for item in self._drain():
                self._handle(item)
            self._on_timers(time.monotonic())
            if self._state.dirty and self._stopped_by is None:
                self._advance()
        return self._stopped_by

    # ------------------------------------------------------------------------------------------------ events

    def _drain(self) -> list[Event]:
        """Wait for the next event or timer, then take everything that is there: a burst of changes makes one pass."""
        wait_s = max(0.0, min(self._timers.values()) - time.monotonic())
        try:
            items = [self._events.get(timeout=wait_s)]
            while not self._events.empty():
                items.append(self._events.get_nowait())
        except queue.Empty:
            return []
        return items

    def _handle(self, item: Event) -> None:
        match item:
            case ConfigRead(text):
                self._on_config(text)
            case ConfigTouched():
                self._executor.submit(ReadConfig())
            case SubnetsListed(records):
                self._store_answers()
                self._set_members(membership.from_records(records, self._state.members))
                self._feed(leasing.Listed(records))
            case SubnetsChanged(changes):
                self._store_answers()
                self._on_changes(changes)
            case LeaseOutcome(outcome):
                self._on_lease_outcome(outcome)
            case StoreFailed(message, denied):
                self._store_fails(message, denied)
            case KernelChanged(what):
                log.debug("kernel: %s", what, extra=event("kernel_changed", what=str(what)))
                self._state.dirty = self._state.look_at_underlay = True
            case RulesChanged():
                self._machine.firewall.touched()
                self._state.dirty = True
            case Ask():
                item.reply.put(carry_out(item.command, item.arguments, self._answer))
            case Stop(signal):
                self._stopped_by = signal

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return answer(command, arguments, self._state, self._machine, self._underlay, self._readiness, self._started_s)

    def _on_changes(self, changes: tuple[object, ...]) -> None:
        state = self._state
        if changes and state.members is not None:
            self._set_members(membership.apply(state.members, changes))  # type: ignore[arg-type]
        self._feed(leasing.Changed(changes))  # type: ignore[arg-type]

    def _set_members(self, members: membership.Membership) -> None:
        self._state.members = members
        self._state.dirty = True

    def _on_lease_outcome(self, outcome: leasing.Event) -> None:
        if isinstance(outcome, leasing.Failed):
            self._store_fails(outcome.message, outcome.denied)
        else:
            self._store_answers()
        self._feed(outcome)

    def _store_answers(self) -> None:
        state = self._state
        state.last_store_word_s = time.monotonic()
        if state.store_problem is not None:
            log.info("etcd answers again", extra=event("store_up"))
            state.store_problem, state.store_denied = None, False

    def _store_fails(self, message: str, denied: bool) -> None:
        state = self._state
        if state.store_problem is None or denied != state.store_denied:
            level = logging.ERROR if denied else logging.WARNING
            meanwhile = "; forwarding goes on by the last known state" if state.plan is not None else ""
            log.log(level, "%s%s", message, meanwhile, extra=event("store_down", denied=denied))
        state.store_problem, state.store_denied = message, denied
        if state.config is None:
            self._retry_config()

    # ------------------------------------------------------------------------------------------------ network config

    def _on_config(self, text: bytes | None) -> None:
        state = self._state
        self._store_answers()
        if text == state.config_text and state.config is not None:
            if state.config_problem is not None:
                log.info("the network config is again what this agent runs by", extra=event("config_restored"))
            state.config_problem = None
            self._timers["config"] = time.monotonic() + CONFIG_REREAD_S
            return
        try:
            config = self._parse(text)
            if state.config is None:
                self._machine.check_free(config, self._underlay.uplink)
                self._identify(config)
        except (ResourceBusy, InterfaceError) as error:
            self._config_fails(f"{error}; nothing is leased before that, it will be tried again", "resource_held")
            return
        except (ConfigError, PlatformError) as error:
            self._config_fails(str(error))
            return
        if state.config is None:
            state.config_text, state.config, state.config_problem = text, config, None
            log.info("network config: %s", config.network, extra=event("config_read", network=str(config.network)))
            self._start_leasing(config)
        else:
            self._config_fails("the network config in etcd has changed; restart the agents, one after the other, to apply it")
        self._timers["config"] = time.monotonic() + CONFIG_REREAD_S

    def _parse(self, text: bytes | None) -> NetworkConfig:
        prefix = self._options.etcd_prefix
        if text is None:
            raise ConfigError(
                f"etcd has no network config at {prefix}/config; write one:  "
                """flanpy network set --json '{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}'"""
            )
        return parse_network_config(text)

    def _config_fails(self, problem: str, name: str = "config_refused") -> None:
        state = self._state
        if problem != state.config_problem:
            log.error("%s", problem, extra=event(name, problem=problem))
        state.config_problem = problem
        if state.config is None:
            self._retry_config()
        else:
            self._timers["config"] = time.monotonic() + CONFIG_REREAD_S

    def _retry_config(self) -> None:
        state = self._state
        self._timers["config"] = time.monotonic() + state.config_wait_s
        state.config_wait_s = min(2 * state.config_wait_s, CONFIG_RETRY_S[1])

    # ------------------------------------------------------------------------------------------------ own lease

    def _identify(self, config: NetworkConfig) -> None:
        """Let our lease say what the backend wants it to. Raises ConfigError or PlatformError when this node cannot run it."""
        backend = backends.find(config.backend.type)
        facts = self._machine.facts(self._identity.node_id, config, self._options.state_dir)
        base = replace(self._identity.attributes, public_ipv6=self._public_ipv6(config))
        self._identity = replace(self._identity, attributes=backend.attributes(base, config, facts))

    def _public_ipv6(self, config: NetworkConfig | None) -> IPv6Address | None:
        """The IPv6 address that peers reach us by; one of the uplink's own only where the cluster has IPv6."""
        own = self._underlay.uplink.address6 if config is not None and config.enable_ipv6 else None
        return self._options.public_ipv6 or own

    def _start_leasing(self, config: NetworkConfig) -> None:
        self._state.lease, effects = leasing.start(self._identity, config, time.monotonic())
        self._do(effects)

    def _feed(self, item: leasing.Event) -> None:
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

    def release(self) -> None:
        """Give the lease back; waits a bounded time for etcd, for the process is about to end."""
        deadline_s = time.monotonic() + RELEASE_S
        self._feed(leasing.Release())
        while self._state.lease is not None and isinstance(self._state.lease.phase, Pending):
            try:
                item = self._events.get(timeout=deadline_s - time.monotonic())
            except (queue.Empty, ValueError):
                log.warning("the lease was not given back: etcd has not answered", extra=event("release_failed"))
                return
            if isinstance(item, LeaseOutcome):
                self._feed(item.event)

    # ------------------------------------------------------------------------------------------------ timers

    def _on_timers(self, now_s: float) -> None:
        state = self._state
        if state.lease is not None and (deadline := leasing.deadline(state.lease)) is not None and deadline <= now_s:
            self._feed(leasing.Tick())
        for name in [name for name, at in self._timers.items() if at <= now_s and name != "lease"]:
            self._fire(name, now_s)
        deadline = leasing.deadline(state.lease) if state.lease is not None else None
        self._timers["lease"] = deadline if deadline is not None else now_s + RESYNC_S

    def _fire(self, name: str, now_s: float) -> None:
        match name:
            case "check":
                self._timers["check"] = now_s + CHECK_S
                if self._state.plan is not None and (self._machine.check() is not None or self._machine.firewall.is_due()):
                    self._state.dirty = True
            case "config":
                del self._timers["config"]
                self._executor.submit(ReadConfig())
            case "converge":
                del self._timers["converge"]
                self._state.dirty = True
            case "manager":
                self._timers["manager"] = now_s + self._manager.interval_s
                self._manager.tell(summary(self._state, self._machine, self._underlay, self._readiness))
            case "resync":
                self._timers["resync"] = now_s + RESYNC_S
                self._state.dirty = True

    # ------------------------------------------------------------------------------------------------ desired state

    def _advance(self) -> None:
        """One pass: from what is known to the desired state, and the machine after it."""
        state = self._state
        state.dirty = False
        if state.look_at_underlay:
            self._follow_underlay()
        if state.config is None or state.members is None or state.lease is None or state.lease.held is None:
            return
        try:
            plan = make_plan(
                state.config, state.lease.held, state.members, self._underlay.uplink, self._options, state.generation + 1
            )
        except FlanpyError as error:
            self._converge_failed((str(error),))
            return
        self._say_refusals(plan)
        state.plan = self._numbered(plan)
        state.outcome = self._machine.converge(state.plan.desired, state.plan.settings)
        state.passes = state.passes.plus(state.outcome.seconds, failed=bool(state.outcome.problems))
        if state.outcome.problems:
            self._converge_failed(state.outcome.problems)
        else:
            state.failures, state.said = 0, Said()
        if state.outcome.usable:
            self._converged(state.config, state.plan)

    def _numbered(self, plan: Plan) -> Plan:
        """The plan with a new table's number, or with the table that stands if it says the same."""
        state, table = self._state, plan.desired.table
        before = state.plan.desired.table if state.plan is not None else None
        if table is not None and before is not None and replace(table, generation=before.generation) == before:
            return replace(plan, desired=replace(plan.desired, table=before))
        state.generation += 1
        return plan

    def _follow_underlay(self) -> None:
        """Register anew when peers have to reach us by another address; MTU and sockets follow with the next plan."""
        self._state.look_at_underlay = False
        if not self._underlay.look():
            return
        address = self._options.public_ip or self._underlay.uplink.address
        attributes = self._identity.attributes
        moved = replace(attributes, public_ip=address or attributes.public_ip, public_ipv6=self._public_ipv6(self._state.config))
        if moved == attributes:
            return
        self._identity = replace(self._identity, attributes=moved)
        self._feed(leasing.AttributesChanged(self._identity.attributes))

    def _converged(self, config: NetworkConfig, plan: Plan) -> None:
        state = self._state
        if state.outcome is not None and state.outcome.changed and not state.outcome.problems:
            log.info(
                "in sync with %s%s (%.1f ms)",
                counted(len(plan.view.peers), "peer"),
                f", table {plan.generation}" if plan.generation is not None else "",
                state.outcome.seconds * 1e3,
                extra=event("converged", peers=len(plan.view.peers), generation=plan.generation),
            )
        self._announce(self._machine.features)
        if state.lease is not None and state.lease.held is not None:
            self._readiness.reached(config, state.lease.held.subnets, plan.desired.mtu_bytes)

    def _announce(self, features: frozenset[str] | None) -> None:
        """Let the lease say what the datapath that runs now can take, if it says something else."""
        said = self._identity.attributes.flanpy
        if features is None or said is None or said.features == features:
            return
        attributes = replace(self._identity.attributes, flanpy=replace(said, features=features))
        self._identity = replace(self._identity, attributes=attributes)
        self._feed(leasing.AttributesChanged(attributes))

    def _converge_failed(self, problems: tuple[str, ...]) -> None:
        state = self._state
        wait_s = min(CONVERGE_RETRY_S[0] * 2 ** min(state.failures, 10), CONVERGE_RETRY_S[1])
        state.failures += 1
        now_s = time.monotonic()
        state.said, due = state.said.say(problems, now_s)
        for problem in due:
            log.error("%s; it will be tried again", problem, extra=event("converge_failed", problem=problem))
        self._timers["converge"] = now_s + wait_s

    def _say_refusals(self, plan: Plan) -> None:
        """Each refused key is said once for each reason, not at every pass."""
        now = {refusal.key: refusal.reason for refusal in plan.view.refusals}
        for key, reason in now.items():
            if self._state.refused.get(key) != reason:
                log.warning("lease %s refused: %s", key, reason, extra=event("lease_refused", key=key, reason=reason))
        self._state.refused = now
