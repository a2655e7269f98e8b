"""The pod registry, as the loop sees it: what stands there, what is attached here, the plan that follows, and what this node claims.

Called by the loop's thread. Decides nothing: the rules are in ``core.pods`` and ``core.pod_claims``. A pass asks for the plan first and
calls ``settle`` when the machine is as planned, so a pod's way into this node is there before anybody is told to use it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flanpy.agent import files
from flanpy.agent.events import PodOutcome, PodsAttached, PodsChanged, PodsListed
from flanpy.agent.executor import Executor
from flanpy.agent.logs import event
from flanpy.agent.said import Allowance, Refused
from flanpy.backends.moved import Moved
from flanpy.core import pods as registry_of
from flanpy.core.attached import AttachedPod
from flanpy.core.membership import View
from flanpy.core.pod_claims import Claimant, Claims, DeletePod, PodEffect, WritePod, claim
from flanpy.core.pods import PodJudge, PodView, Registry, pod_key
from flanpy.model import LEASE_TTL_S, Address, Lease, NetworkConfig, RecordChange, Refusal

log = logging.getLogger(__name__)

CLAIMED_FILE = "pods-claimed.json"
RETRY_S = (0.5, 10.0)
"""Least and most wait before a write that has failed is tried again."""

REMIND_S = 1.0
"""How often the neighbours of a pod that has moved away are told so while its old copy still speaks to them."""


@dataclass(frozen=True, slots=True)
class PodPlan:
    """One pass's judgement of the registry and of what is attached here."""

    view: PodView = field(default_factory=PodView)
    claims: Claims = field(default_factory=Claims)
    moved: Moved = field(default_factory=Moved)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Entries that are not used, and attached pods that are not registered."""
        return (*self.view.refusals, *self.claims.refusals)


class PodKeeper:
    """The loop's pods; ``on`` is false without --pod-registry, and then nothing here does anything."""

    def __init__(self, executor: Executor, state_dir: Path, *, on: bool) -> None:
        self.on = on
        self.plan = PodPlan()
        self.problem: str | None = None
        self._executor = executor
        self._registry: Registry | None = None
        self._attached: tuple[AttachedPod, ...] | None = None
        self._attached_whole = False
        self._pending: dict[str, PodEffect] = {}
        self._written_s: dict[str, float] = {}
        self._failures = 0
        self._not_before_s = 0.0
        self._refused = Refused()
        self._allowance = Allowance()
        self._claimed_path = state_dir / CLAIMED_FILE
        self._claimed: frozenset[str] = _read_claimed(self._claimed_path) if on else frozenset()

    # ------------------------------------------------------------------------------------------------ events

    def take(self, item: PodsListed | PodsChanged | PodsAttached | PodOutcome) -> bool:
        """One event; whether a pass should follow."""
        before = self._registry, self._attached, self._attached_whole
        match item:
            case PodsListed(records):
                self._registry = registry_of.from_records(records)
            case PodsChanged(changes):
                self._apply(changes)
            case PodsAttached(pods, whole):
                self._attached, self._attached_whole = pods, whole
            case PodOutcome():
                self._on_outcome(item)
                return True
        return (self._registry, self._attached, self._attached_whole) != before

    def _apply(self, changes: Iterable[RecordChange]) -> None:
        if self._registry is not None:
            self._registry = registry_of.apply(self._registry, changes)

    def _on_outcome(self, outcome: PodOutcome) -> None:
        effect = outcome.effect
        self._pending.pop(effect.key, None)
        if outcome.problem is not None:
            wait_s = min(RETRY_S[0] * 2 ** min(self._failures, 10), RETRY_S[1])
            self._failures += 1
            self._not_before_s = time.monotonic() + wait_s
            if self.problem is None:
                log.warning("pod registry: %s; it will be tried again", outcome.problem, extra=event("pod_write_failed"))
            self.problem = f"pod registry: {outcome.problem}"
            return
        self._failures, self.problem = 0, None
        if isinstance(effect, WritePod) and outcome.record is not None:
            record = outcome.record
            self._written_s[effect.key] = time.monotonic()
            self._apply((RecordChange(record.mod_revision, record.key, record),))
            self._remember(effect.attachment)
            log.info("pod registered: %s", effect.key, extra=event("pod_registered", key=effect.key))
        elif isinstance(effect, DeletePod) and outcome.done:
            self._written_s.pop(effect.key, None)
            log.info("pod no longer registered: %s", effect.key, extra=event("pod_released", key=effect.key))

    def _remember(self, attachment: str) -> None:
        """That this attachment has had its address: it never takes it back from a node that the pod has moved to."""
        if attachment in self._claimed:
            return
        attached = {pod.attachment for pod in self._attached or ()}
        self._claimed = frozenset(each for each in self._claimed if each in attached) | {attachment}
        with suppress(OSError):  # forgotten after a restart then: the pod's old copy would take its address back once
            files.write_atomically(self._claimed_path, json.dumps(sorted(self._claimed)) + "\n", 0o600)

    # ------------------------------------------------------------------------------------------------ passes

    def make_plan(
        self,
        config: NetworkConfig,
        own: Lease,
        node_id: str,
        view: View,
        addresses: Iterable[Address],
        kept: Iterable[Lease] = (),
    ) -> Moved:
        """Judge everything anew for this pass; what the backends should do about single pods."""
        if not self.on or self._registry is None:
            return Moved()
        judge = PodJudge(config, own, node_id, view, addresses)
        pods = judge.view(self._registry, self.plan.view, kept)
        claims = Claims()
        if self._attached is not None:
            who = Claimant(node_id, own.etcd_lease_id, self._claimed, self._due(own), self._attached_whole)
            claims = claim(self._attached, self._registry, pods, judge, who)
        here = {pod.address for pod in claims.here}
        away = tuple(place for place in pods.moved if place.entry.pod.address not in here)
        guests = tuple(pod for pod in claims.here if not judge.is_ours(pod.address))
        self.plan = PodPlan(pods, claims, Moved(away, guests, claims.here, looked_after=True))
        self._say_refusals()
        return self.plan.moved

    def _due(self, own: Lease) -> frozenset[str]:
        """Keys with etcd leases of their own that are half over, or of which that is not known."""
        if own.etcd_lease_id or self._registry is None:
            return frozenset()
        half_s = time.monotonic() - LEASE_TTL_S / 2
        return frozenset(key for key in self._registry.entries if self._written_s.get(key, float("-inf")) < half_s)

    def settle(self) -> float | None:
        """Tell the store what this node claims; when the next pass is due on account of pods (monotonic), or None.

        A write that has failed is tried again; while an old copy of a pod is attached here, the pod's neighbours are told often.
        """
        next_s = time.monotonic() + REMIND_S if self.plan.claims.gone else None
        effects = [effect for effect in self.plan.claims.effects if effect.key not in self._pending]
        if not effects:
            return next_s
        if time.monotonic() < self._not_before_s:
            return self._not_before_s
        for effect in effects:
            self._pending[effect.key] = effect
            self._executor.submit(effect)
        return next_s

    def release(self) -> None:
        """Take our entries back, for our subnet goes back too; not waited for."""
        if self.on and self._registry is not None:
            for pod in self.plan.claims.here:
                entry = self._registry.entries.get(pod_key(pod.address))
                if entry is not None and pod_key(pod.address) in self.plan.view.places:
                    self._executor.submit(DeletePod(pod_key(pod.address), entry.mod_revision))

    def _say_refusals(self) -> None:
        self._refused, news = self._refused.say(self.plan.refusals)
        self._allowance, few, more = self._allowance.spend(len(news), time.monotonic())
        for key, reason in news[:few]:
            log.warning("pod %s refused: %s", key, reason, extra=event("pod_refused", key=key, reason=reason))
        if more:
            log.warning("%d more pods refused: flanpy pods shows them", more, extra=event("more_pods_refused", count=more))


def _read_claimed(path: Path) -> frozenset[str]:
    try:
        kept = json.loads(files.read_text(path) or "[]")
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(item for item in kept if isinstance(item, str)) if isinstance(kept, list) else frozenset()
