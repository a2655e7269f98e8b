"""The single moves of the leasing state machine: ask the store, write a lease, wait, give up. They decide nothing.

Each takes a state and returns the next one with its effects; ``core.lease_rules`` chooses among them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from flanpy.core.codec import encode_attributes, key_of
from flanpy.core.lease_events import (
    Action,
    Create,
    Delete,
    Effect,
    LeasingState,
    List,
    Pending,
    Purpose,
    Replace,
    Say,
    StoreEffect,
    Waiting,
)
from flanpy.model import FlanpyInfo, Lease, Subnets

CONTEST_S = 10.0
"""How long a living node has to answer the mark on its lease; also how long whoever has taken over a lease must yield."""
CONTESTED = "contested"
"""The mark: a feature that no datapath looks at."""
LEAVING = "leaving"
"""The mark by which a node says that it deletes its lease now: peers drop it at once, whatever grace they give (``core.grace``)."""
LEAVE_S = 60
"""How long a lease so marked still lives if its node does not come to delete it."""
RACE_S = (0.01, 2.0)
"""First and longest wait after a lost race."""
AWAY_S = (0.2, 3.0)
"""First and longest wait while the store does not answer: it is to be caught up with within 5 s of its return."""
EXHAUSTED_S = (1.0, 30.0)
CONFLICT_S = (30.0, 600.0)

Step = tuple[LeasingState, tuple[Effect, ...]]


def ask(state: LeasingState, purpose: Purpose, effect: StoreEffect, now_s: float) -> Step:
    """Send one effect; the caller knows that none is outstanding."""
    return replace(state, phase=Pending(effect, purpose, now_s)), (effect,)


def list_leases(state: LeasingState, now_s: float) -> Step:
    """List the leases now, or as soon as what is outstanding has come back."""
    if isinstance(state.phase, Pending):
        return replace(state, relist=True), ()
    return ask(replace(state, relist=False), Purpose.LIST, List(), now_s)


def write(state: LeasingState, purpose: Purpose, lease: Lease, now_s: float) -> Step:
    """Write our value (or what the lease says, with a mark) over a lease at the revision that we know."""
    value = own_value(state) if purpose not in _MARKS else marked_value(state, lease, _MARKS[purpose])
    longest_s = LEAVE_S if purpose is Purpose.LEAVE else state.identity.ttl_s
    ttl_s = 0 if lease.is_reservation else min(longest_s, state.identity.ttl_s)
    return ask(state, purpose, Replace(key_of(lease.subnets), value, lease.mod_revision, ttl_s), now_s)


def create(state: LeasingState, subnets: Subnets, now_s: float) -> Step:
    """Register subnets that nobody has."""
    return ask(state, Purpose.ACQUIRE, Create(key_of(subnets), own_value(state), state.identity.ttl_s), now_s)


def delete(state: LeasingState, purpose: Purpose, lease: Lease, now_s: float) -> Step:
    """Delete a lease of ours at the revision that we know."""
    return ask(state, purpose, Delete(key_of(lease.subnets), lease.mod_revision), now_s)


def own_value(state: LeasingState) -> bytes:
    """What our lease should say."""
    return encode_attributes(state.identity.attributes)


def marked_value(state: LeasingState, lease: Lease, mark: str) -> bytes:
    """The lease's own value with the mark added."""
    info = lease.attributes.flanpy or FlanpyInfo(state.identity.node_id)
    return encode_attributes(replace(lease.attributes, flanpy=FlanpyInfo(info.node, info.features | {mark})))


_MARKS = {Purpose.CONTEST: CONTESTED, Purpose.LEAVE: LEAVING}


# ------------------------------------------------------------------------------------------------ waiting


def rest(state: LeasingState) -> LeasingState:
    """Everything is as it should be: wait for the renewal; a reservation needs none."""
    state = replace(state, attempt=0, problem=None)
    if state.expires_s is None:
        return replace(state, phase=Waiting(Action.NOTHING, math.inf))
    ttl_s, margin_s = state.identity.ttl_s, state.identity.renew_margin_s
    return replace(state, phase=Waiting(Action.RENEW, state.expires_s - (margin_s if margin_s < ttl_s else ttl_s * 2 / 3)))


def wait(state: LeasingState, action: Action, bounds_s: tuple[float, float], now_s: float) -> LeasingState:
    """Back off: twice as long after every failure in a row, spread by chance."""
    first_s, longest_s = bounds_s
    wait_s = min(longest_s, first_s * 2 ** min(state.attempt, 30)) * (0.5 + 0.5 * chance(state))
    return replace(state, phase=Waiting(action, now_s + wait_s), attempt=state.attempt + 1)


def stop(state: LeasingState, problem: str) -> LeasingState:
    """Nothing more is to be done."""
    return replace(state, phase=Waiting(Action.NOTHING, math.inf), problem=problem)


def chance(state: LeasingState) -> float:
    """A number from 0 to 1."""
    return state.identity.pick(1001) / 1000


# ------------------------------------------------------------------------------------------------ giving up


def race_lost(state: LeasingState, now_s: float) -> Step:
    """Somebody was faster; list again after a short while."""
    say = Say("info", "lease_race_lost", "another node was faster: listing the leases again")
    return wait(state, Action.LIST, RACE_S, now_s), (say,)


def refused(state: LeasingState, subnets: Subnets, now_s: float) -> Step:
    """Another living node has our node id: we are the second and hold nothing."""
    problem = (
        f"another living node has our node id {state.identity.node_id} and holds {subnets}: this machine is probably a clone of it; "
        "delete the file node-id in the state directory of one of them and restart its agent"
    )
    state = replace(let_go(state), contest=None, problem=problem, attempt=state.refusals, refusals=state.refusals + 1)
    return wait(state, Action.LIST, CONFLICT_S, now_s), (Say("error", "identity_conflict", problem),)


def lost(state: LeasingState, held: Lease, why: str) -> tuple[LeasingState, Say]:
    """The held subnet is somebody else's now; the caller looks for another."""
    problem = f"the subnet {held.subnets} is lost: {why}; pods of this node need another"
    return replace(let_go(state), problem=problem), Say("error", "lease_lost", problem)


def let_go(state: LeasingState) -> LeasingState:
    """Hold nothing, and do not ask for that subnet again."""
    return replace(state, held=None, expires_s=None, preferred=None)


def then(first: Say, following: Step) -> Step:
    """The following step, with something said before."""
    return following[0], (first, *following[1])
