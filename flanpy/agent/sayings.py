"""What the loop says in the log, and how often: problems of a pass, refused leases, the store that fails and answers again.

Called by the loop's thread; keeps in its state what was said. Which problem is due, and how many lines a flood may have, ``said`` judges.
"""

from __future__ import annotations

import logging
import time

from flanpy.agent.events import StoreFailed
from flanpy.agent.logs import event
from flanpy.agent.planner import Plan
from flanpy.agent.said import Said, counted, shortened
from flanpy.agent.state import State

log = logging.getLogger(__name__)


class Sayings:
    """Keeps ``state.said``, ``state.refused``, ``state.allowance`` and what of the store concerns the operator."""

    def __init__(self, state: State) -> None:
        self._state = state

    # ------------------------------------------------------------------------------------------------ passes

    def problems(self, problems: tuple[str, ...], now_s: float) -> None:
        """A pass had these problems; the log gets those that are due."""
        state = self._state
        state.said, due = state.said.say(problems, now_s)
        state.allowance, few, more = state.allowance.spend(len(due), now_s)
        for problem in map(shortened, due[:few]):
            log.error("%s; it will be tried again", problem, extra=event("converge_failed", problem=problem))
        self._more(more)

    def no_problem(self) -> None:
        """A pass had none: whatever comes next is new."""
        self._state.said = Said()

    def in_sync(self, plan: Plan) -> None:
        """Tell of a pass that has changed something and leaves nothing to be done."""
        outcome = self._state.outcome
        if outcome is None or not outcome.changed or outcome.problems:
            return
        log.info(
            "in sync with %s%s (%.1f ms)",
            counted(len(plan.view.peers), "peer"),
            f", table {plan.generation}" if plan.generation is not None else "",
            outcome.seconds * 1e3,
            extra=event("converged", peers=len(plan.view.peers), generation=plan.generation),
        )

    def refusals(self, plan: Plan) -> None:
        """Each refused lease is said once for each reason, not at every pass; of a flood some."""
        state = self._state
        state.refused, news = state.refused.say(plan.view.refusals)
        state.allowance, few, more = state.allowance.spend(len(news), time.monotonic())
        for key, reason in news[:few]:
            log.warning("lease %s refused: %s", key, reason, extra=event("lease_refused", key=key, reason=reason))
        self._more(more)

    def _more(self, more: int) -> None:
        if more:
            told = counted(more, "more problem")
            log.warning(
                "%s: `flanpy status` and `flanpy peers` show what is wrong now", told, extra=event("more_problems", count=more)
            )

    # ------------------------------------------------------------------------------------------------ the store

    def store_answers(self, doing: str) -> None:
        """The store has answered whoever meets it by ``doing`` (``state.READING``, ``state.WRITING``)."""
        state = self._state
        state.last_store_word_s = time.monotonic()
        if state.store_faults.pop(doing, None) is not None and not state.store_faults:
            log.info("etcd answers again", extra=event("store_up"))

    def store_fails(self, doing: str, fault: StoreFailed) -> None:
        """The store has failed; the first fault is said, and the first that an operator has to mend."""
        state = self._state
        before = state.store_fault
        if before is None or (fault.denied and not before.denied):
            level = logging.ERROR if fault.denied else logging.WARNING
            meanwhile = "; forwarding goes on by the last known state" if state.plan is not None else ""
            log.log(level, "%s%s", fault.message, meanwhile, extra=event("store_down", denied=fault.denied))
        state.store_faults[doing] = fault
