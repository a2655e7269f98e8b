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
from dataclasses import replace
from typing import Any

from flanpy.agent.commands import carry_out
from flanpy.agent.config_reader import ConfigReader
from flanpy.agent.events import (
    Ask,
    ConfigRead,
    ConfigTouched,
    DatapathLost,
    Event,
    EventQueue,
    KernelChanged,
    LeaseOutcome,
    PodOutcome,
    PodsAttached,
    PodsChanged,
    PodsListed,
    ReloadAsked,
    RulesChanged,
    Stop,
    StoreFailed,
    SubnetsChanged,
    SubnetsListed,
    ThreadEnded,
)
from flanpy.agent.executor import Executor, ReadConfig
from flanpy.agent.logs import event
from flanpy.agent.machine import Machine
from flanpy.agent.members import Members
from flanpy.agent.notify import ServiceManager
from flanpy.agent.own_lease import OwnLease
from flanpy.agent.peer_paths import PeerPaths
from flanpy.agent.planner import Plan, make_plan
from flanpy.agent.pods import PodKeeper
from flanpy.agent.readiness import Readiness
from flanpy.agent.reload import Reload
from flanpy.agent.report import answer, summary
from flanpy.agent.sayings import Sayings
from flanpy.agent.state import READING, WRITING, State
from flanpy.agent.underlay import Underlay
from flanpy.backends.moved import Moved
from flanpy.config.options import AgentOptions
from flanpy.core import leasing
from flanpy.core.membership import View
from flanpy.errors import FlanpyError
from flanpy.model import NetworkConfig, Uplink

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How often the datapath is asked whether it lives."""
RESYNC_S = 30.0
"""How often the machine is compared with the desired state though nothing was heard."""
CONVERGE_RETRY_S = (0.2, 10.0)
"""Least and most wait before a pass that had problems is tried again."""
WAITS_RETRY_S = 0.3
"""The most while a datapath process is waited for: what hangs is replaced after some looks, and nothing may be carried until then."""
WAITS_PASSES = 20
"""So many passes are made so soon; what hangs for longer cannot be ended, and needs an operator."""
HASTE_S = 1.0
"""While passes fail, word from the kernel or of the rules brings the next one forward to this long after the last: what a failing pass
does (a device that it makes and gives up again) is such word itself, and must not feed the next."""

PLANNED = ("ip_masq", "ip_masq_fully_random_disable", "iptables_forward_rules", "firewall", "ip_blackhole_route")
"""Options that every plan is made by: a change of them takes the next pass."""


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
        paths: PeerPaths,
        reload: Reload,
        events: EventQueue,
    ) -> None:
        self._options = options
        self._underlay = underlay
        self._machine = machine
        self._executor = executor
        self._readiness = readiness
        self._paths = paths
        self._reload = reload
        reload.add(PLANNED, self._use)
        self._events = events
        self._state = State()
        self._pods = self._state.pods = PodKeeper(executor, options.state_dir, on=options.pod_registry)
        self._sayings = Sayings(self._state)
        self._own = OwnLease(self._state, identity, options, underlay, machine, executor, paths)
        self._members = Members(self._state, options)
        reload.add(("peer_grace", "etcd_loss_grace"), self._members.use)
        self._config = ConfigReader(self._state, options, underlay, machine, self._own)
        self._started_s = time.monotonic()
        self._state.timers = {"check": self._started_s + CHECK_S, "resync": self._started_s + RESYNC_S}
        self._stopped_by: str | None = None
        self._manager = ServiceManager(os.environ, CHECK_S)
        if self._manager.is_there:
            self._state.timers["manager"] = self._started_s + self._manager.interval_s

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
        wait_s = max(0.0, min(self._state.timers.values()) - time.monotonic())
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
                self._sayings.store_answers(READING)
                self._config.read(text)
            case ConfigTouched():
                self._executor.submit(ReadConfig())
            case SubnetsListed(records):
                self._sayings.store_answers(READING)
                self._members.listed(records)
                self._own.feed(leasing.Listed(records))
            case SubnetsChanged(changes):
                self._sayings.store_answers(READING)
                self._members.changed(changes)
                self._own.feed(leasing.Changed(changes))
            case PodsListed() | PodsChanged() | PodsAttached() | PodOutcome():
                news = self._pods.take(item)
                self._state.dirty = self._state.dirty or news
            case LeaseOutcome(outcome):
                self._on_lease_outcome(outcome)
            case StoreFailed():
                self._store_fails(READING, item)
            case KernelChanged() | RulesChanged() | DatapathLost():
                self._on_machine(item)
            case Ask():
                item.reply.put(carry_out(item.command, item.arguments, self._answer, self._reload_options, self._reload.describe))
            case ReloadAsked():
                self._reload_options()
            case ThreadEnded(name, reason):
                self._state.defect = f"a defect in flanpy: its thread {name} has ended ({reason}); restart the agent"
            case Stop(signal):
                self._stopped_by = signal

    def _on_machine(self, item: KernelChanged | RulesChanged | DatapathLost) -> None:
        match item:
            case KernelChanged(what):
                log.debug("kernel: %s", what, extra=event("kernel_changed", what=str(what)))
                self._state.look_at_underlay = True
                self._soon()
                self._config.kernel_changed()
            case RulesChanged():
                self._machine.firewall.touched()
                self._soon()
            case DatapathLost():
                self._state.timers["check"] = time.monotonic()

    def _soon(self) -> None:
        """Something on this machine has changed: a pass now, or a little later while passes fail."""
        state = self._state
        retry_s = state.timers.get("converge")
        if state.failures == 0 or retry_s is None:
            state.dirty = True
        else:
            state.timers["converge"] = min(retry_s, state.passed_s + HASTE_S)

    def _use(self, options: AgentOptions) -> None:
        self._options, self._state.dirty = options, True

    def _reload_options(self) -> dict[str, Any]:
        answer = self._reload.reload(self._readiness.ready)
        self._own.announce(self._machine.features)
        self._manager.forget()
        return answer

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return answer(
            command, arguments, self._state, self._machine, self._underlay, self._readiness, self._paths, self._started_s
        )

    def _on_lease_outcome(self, outcome: leasing.Event) -> None:
        if isinstance(outcome, leasing.Failed):
            self._store_fails(WRITING, StoreFailed(outcome.message, outcome.denied))
        else:
            self._sayings.store_answers(WRITING)
        self._own.feed(outcome)

    def _store_fails(self, doing: str, fault: StoreFailed) -> None:
        self._sayings.store_fails(doing, fault)
        if self._state.config is None:
            self._config.retry()

    def release(self) -> None:
        """Give the lease back; waits a bounded time for etcd, for the process is about to end."""
        self._pods.release()
        self._own.release(self._events)

    # ------------------------------------------------------------------------------------------------ timers

    def _on_timers(self, now_s: float) -> None:
        state = self._state
        if state.lease is not None and (deadline := leasing.deadline(state.lease)) is not None and deadline <= now_s:
            self._own.feed(leasing.Tick())
        for name in [name for name, at in self._state.timers.items() if at <= now_s and name != "lease"]:
            self._fire(name, now_s)
        deadline = leasing.deadline(state.lease) if state.lease is not None else None
        self._state.timers["lease"] = deadline if deadline is not None else now_s + RESYNC_S

    def _fire(self, name: str, now_s: float) -> None:
        match name:
            case "check":
                self._state.timers["check"] = now_s + CHECK_S
                if self._is_disturbed(now_s):
                    self._soon()
            case "config":
                del self._state.timers["config"]
                self._executor.submit(ReadConfig())
            case "converge":
                del self._state.timers["converge"]
                self._state.dirty = True
            case "grace":
                self._members.on_timer()
            case "kept":
                self._members.save()
            case "manager":
                self._state.timers["manager"] = now_s + self._manager.interval_s
                self._manager.tell(summary(self._state, self._machine, self._underlay, self._readiness))
            case "resync":
                self._state.timers["resync"] = now_s + RESYNC_S
                self._state.look_at_underlay = True  # the monitor hears nothing of the routes of others
                self._state.dirty = True

    def _is_disturbed(self, now_s: float) -> bool:
        """Whether the datapath, the rules or subnet.env are not as the last pass left them."""
        if self._state.plan is None:
            return False
        return self._machine.check() is not None or self._machine.firewall.is_due() or self._readiness.is_due(now_s)

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
            known = state.members, state.kept
            plan = make_plan(
                state.config,
                state.lease.held,
                *known,
                self._underlay.uplink,
                self._options,
                state.generation + 1,
                self._single_pods,
            )
        except FlanpyError as error:
            self._converge_failed((str(error),))
            return
        self._sayings.refusals(plan)
        state.plan = self._numbered(plan)
        state.outcome = self._machine.converge(state.plan.desired, state.plan.settings)
        state.passes = state.passes.plus(state.outcome.seconds, failed=bool(state.outcome.problems))
        if state.outcome.problems:
            self._converge_failed(state.outcome.problems, waits=state.outcome.waits)
        else:
            state.failures = 0
            self._sayings.no_problem()
        if state.outcome.usable:
            self._converged(state.config, state.plan)
        if (again_s := self._pods.settle()) is not None:
            state.timers["converge"] = min(again_s, state.timers.get("converge", again_s))

    def _single_pods(self, view: View) -> Moved:
        """The pods of this pass; only called with a lease."""
        state, uplink = self._state, self._underlay.uplink
        if state.config is None or state.lease is None or state.lease.held is None:
            return Moved()
        addresses = [address for address in (uplink.address, uplink.address6) if address is not None]
        kept = [each.lease for each in state.kept.values()]
        return self._pods.make_plan(state.config, state.lease.held, state.lease.identity.node_id, view, addresses, kept)

    def _numbered(self, plan: Plan) -> Plan:
        """The plan with a new table's number, or with the table that stands if it says the same."""
        state, table = self._state, plan.desired.table
        before = state.plan.desired.table if state.plan is not None else None
        if table is not None and before is not None and replace(table, generation=before.generation) == before:
            return replace(plan, desired=replace(plan.desired, table=before))
        state.generation += 1
        return plan

    def _follow_underlay(self) -> None:
        """MTU and sockets follow with the next plan; the lease says where peers reach us now."""
        self._state.look_at_underlay = False
        before = self._underlay.uplink
        if self._underlay.look():
            if _moved(before, self._underlay.uplink):
                self._executor.reconnect()  # or writes would wait until the connections from the old address time out
            self._own.follow_underlay()

    def _converged(self, config: NetworkConfig, plan: Plan) -> None:
        state = self._state
        self._sayings.in_sync(plan)
        self._own.announce(self._machine.features)
        if state.lease is not None and state.lease.held is not None:
            self._paths.follow(plan, state.lease.held)
            self._readiness.reached(config, state.lease.held.subnets, plan.desired.mtu_bytes)

    def _converge_failed(self, problems: tuple[str, ...], *, waits: bool = False) -> None:
        state = self._state
        most_s = WAITS_RETRY_S if waits and state.failures < WAITS_PASSES else CONVERGE_RETRY_S[1]
        wait_s = min(CONVERGE_RETRY_S[0] * 2 ** min(state.failures, 10), most_s)
        state.failures += 1
        now_s = state.passed_s = time.monotonic()
        self._sayings.problems(problems, now_s)
        state.timers["converge"] = now_s + wait_s


def _moved(before: Uplink, after: Uplink) -> bool:
    """Whether packets leave this machine by another interface or from another address."""
    return (before.index, before.address, before.address6) != (after.index, after.address, after.address6)
