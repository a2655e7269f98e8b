"""Everybody's leases, as the loop sees them: feeds ``core.membership`` and ``core.grace``, and says what they have decided.

Called by the loop's thread. Decides nothing: which leases are kept after they have vanished, and for how long, is ``core.grace``'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from flanpy.agent.kept_leases import KeptLeases
from flanpy.agent.logs import event
from flanpy.agent.state import State
from flanpy.config.options import AgentOptions
from flanpy.core import grace, membership
from flanpy.core.codec import key_of
from flanpy.model import KeptLease, RecordChange, RecordSet

log = logging.getLogger(__name__)

TIMER = "grace"
FILE_TIMER = "kept"


class Members:
    """Keeps ``state.members`` and ``state.kept``."""

    def __init__(self, state: State, options: AgentOptions) -> None:
        self._state = state
        self._grace = grace.Grace(options.peer_grace, options.etcd_loss_grace)
        self._file = KeptLeases(options.run_dir)
        self._restored = state.kept = self._file.load(self._grace)

    def use(self, options: AgentOptions) -> None:
        """Keep leases that vanish from now on for these times; those that are kept already keep theirs."""
        self._grace = grace.Grace(options.peer_grace, options.etcd_loss_grace)

    def listed(self, records: RecordSet) -> None:
        """All leases, read anew."""
        state, now_s = self._state, time.monotonic()
        before, state.members = state.members, membership.from_records(records, state.members)
        self._keep(grace.after_listing(state.kept, before, state.members, self._own_key(), self._grace, now_s))

    def changed(self, changes: tuple[RecordChange, ...]) -> None:
        """Changes of leases; without effect before the first listing."""
        state = self._state
        if changes and state.members is not None:
            before, state.members = state.members, membership.apply(state.members, changes)
            self._keep(grace.after_changes(state.kept, before, state.members, changes, self._grace, time.monotonic()))

    def on_timer(self) -> None:
        """The time of a kept lease is over."""
        state = self._state
        if state.members is not None:
            self._keep(grace.current(state.kept, state.members, time.monotonic()))

    def save(self) -> None:
        """The next agent of this node is to keep what we do."""
        if (again_s := self._file.save(self._state.kept)) is not None:
            self._state.timers[FILE_TIMER] = again_s
        else:
            self._state.timers.pop(FILE_TIMER, None)

    def _own_key(self) -> str | None:
        held = self._state.lease.held if self._state.lease else None
        return None if held is None else key_of(held.subnets)

    def _keep(self, kept: Mapping[str, KeptLease]) -> None:
        """Our own lease is ``core.leasing``'s: it registers it again."""
        state, own_key = self._state, self._own_key()
        if own_key in kept:
            kept = {key: lease for key, lease in kept.items() if key != own_key}
        before, state.kept, state.dirty = state.kept, kept, True
        self._say(before)
        self.save()
        state.timers.pop(TIMER, None)
        if (deadline_s := grace.deadline(kept)) is not None:
            state.timers[TIMER] = deadline_s

    def _say(self, before: Mapping[str, KeptLease]) -> None:
        """One line for all that are kept now, and one for all whose time is over."""
        state, now_s = self._state, time.monotonic()
        restored, self._restored = self._restored, {}
        if left := [lease for key, lease in restored.items() if key in state.kept]:
            longest_s = max(lease.until_s for lease in left) - now_s
            text = "%s vanished before this start: peers are kept for %.0f s more unless they register again"
            log.warning(text, _leases(len(left)), longest_s, extra=event("peers_kept", leases=len(left), why="before this start"))
        new = [lease for key, lease in state.kept.items() if key not in before]
        if new:
            why = "etcd has lost its data" if any(lease.cause == "lost" for lease in new) else "expired or deleted"
            longest_s = max(lease.until_s for lease in new) - now_s
            text = "%s vanished (%s): peers are kept for %.0f s unless they register again"
            log.warning(text, _leases(len(new)), why, longest_s, extra=event("peers_kept", leases=len(new), why=why))
        over = [key for key, lease in before.items() if key not in state.kept and lease.until_s <= now_s]
        if over:
            text = "%s not registered again within the grace time: dropped"
            log.warning(text, _leases(len(over)), extra=event("peer_grace_over", leases=len(over)))


def _leases(number: int) -> str:
    return "1 lease" if number == 1 else f"{number} leases"
