"""The own lease as a state machine: ``step(state, event, now_s) -> (state, effects)``; no I/O, no clock, no chance of its own.

    List -> ours? -> Replace (adopt) --+--> held -> Replace at expiry - margin -> held ...
            else  -> Create ----------/      |
            lost race: List again            +- another writes our key, or it is gone: see below

At most one store effect is outstanding; its result comes back as an event, and every other event that arrives meanwhile is
remembered and judged by revision afterwards. Every write is a compare-and-swap on a revision that we have seen: a node that
was paused past its TTL cannot overwrite the next owner.

Ours is, in this order: a lease with our node id and address; one of a node without id at our address (flanneld before us in
place, a reservation); the previous subnet if it is free; a random free one. A reservation is written without expiry.

The store is away: the lease stays held (the datapath goes on), with back-off until an answer comes. Our key is gone: the same
subnet again if it is free, else another, loudly. Somebody else has it: another, loudly.

**A clone or a new address?** A lease with our node id and another address is either ours from before the address changed or
that of a living clone of this machine. If it is the previous subnet (subnet.env lies in /run, which dies with the boot and is
not on a cloned disk) it is ours. Else we ask: we mark the lease (feature ``contested``, its address untouched, so that nobody's
traffic moves) and wait ``CONTEST_S``. A living owner sees its key written and writes it back at once, so our claim by
compare-and-swap fails and we are refused with a message; the key of a dead one stays marked and becomes ours. While we run, an
address change is told to us and needs none of this. A clone behind the very same address looks like us after a restart and
takes the lease over; the owner writes it back, and whoever has taken over less than ``CONTEST_S`` ago yields.
"""

from __future__ import annotations

import math
from dataclasses import replace

from flanpy.core.codec import decode_lease, key_of
from flanpy.core.lease_events import (
    Action,
    AttributesChanged,
    Changed,
    ConfigChanged,
    Create,
    Created,
    Delete,
    Deleted,
    Effect,
    Event,
    Failed,
    Identity,
    LeasingState,
    List,
    Listed,
    Pending,
    Purpose,
    Release,
    Replace,
    Replaced,
    Say,
    StoreEffect,
    Tick,
    Waiting,
)
from flanpy.core.lease_moves import AWAY_S, Step, chance, list_leases, race_lost, refused, stop, then, wait, write
from flanpy.core.lease_rules import decide, record_of, settle, stands, wait_for_answer
from flanpy.model import FlanpyInfo, NetworkConfig, NodeAttributes, Record, RecordChange, RecordSet

__all__ = [
    "AttributesChanged",
    "Changed",
    "ConfigChanged",
    "Create",
    "Created",
    "Delete",
    "Deleted",
    "Effect",
    "Event",
    "Failed",
    "Identity",
    "LeasingState",
    "List",
    "Listed",
    "Release",
    "Replace",
    "Replaced",
    "Say",
    "StoreEffect",
    "Tick",
    "deadline",
    "initial",
    "start",
    "step",
]


def initial(identity: Identity, config: NetworkConfig) -> LeasingState:
    """The state before anything has happened; it wants a Tick at once."""
    return LeasingState(
        identity=_named(identity, identity.attributes),
        config=config,
        phase=Waiting(Action.LIST, -math.inf),
        preferred=identity.previous,
        addresses=frozenset({identity.attributes.address}),
        problem="no subnet yet",
    )


def start(identity: Identity, config: NetworkConfig, now_s: float) -> Step:
    """The initial state after its first Tick: its effect lists the leases."""
    return step(initial(identity, config), Tick(), now_s)


def deadline(state: LeasingState) -> float | None:
    """When the next Tick is wanted; None: not before another event."""
    match state.phase:
        case Waiting(_, at_s) if at_s < math.inf:
            return at_s
    return None


def step(state: LeasingState, event: Event, now_s: float) -> Step:
    """What becomes of the state, and what is to be done."""
    if state.releasing and isinstance(state.phase, Waiting):
        return state, ()
    match event:
        case Created() | Replaced() | Deleted() | Failed():
            return _on_result(state, event, now_s)
        case Listed(records):
            return _on_listed(state, records, now_s)
        case Changed(changes):
            return _on_changes(state, changes, now_s)
        case Tick():
            return _on_tick(state, now_s)
        case _:
            return _on_order(state, event, now_s)


# ------------------------------------------------------------------------------------------------ events from outside


def _on_order(state: LeasingState, event: AttributesChanged | ConfigChanged | Release, now_s: float) -> Step:
    match event:
        case AttributesChanged(attributes):
            addresses = state.addresses | {attributes.address}
            state = replace(state, identity=_named(state.identity, attributes), addresses=addresses)
            return _when_idle(state, now_s) if state.held is not None else (state, ())
        case ConfigChanged(config):
            return list_leases(replace(state, config=config), now_s)
        case Release():
            return _when_idle(replace(state, releasing=True), now_s)


def _on_tick(state: LeasingState, now_s: float) -> Step:
    match state.phase:
        case Waiting(action, at_s) if at_s <= now_s:
            return _act(state, action, now_s)
    return state, ()


def _act(state: LeasingState, action: Action, now_s: float) -> Step:
    match action:
        case Action.RENEW if state.held is not None:
            return write(state, Purpose.RENEW, state.held, now_s)
        case Action.CLAIM if state.contest is not None:
            return write(state, Purpose.CLAIM, state.contest, now_s)
        case Action.NOTHING:
            return state, ()
    return list_leases(state, now_s)


def _on_listed(state: LeasingState, records: RecordSet, now_s: float) -> Step:
    """The listing that we asked for decides; any other may be older than what we know, and only makes us look."""
    match state.phase:
        case Pending(_, Purpose.LIST):
            return decide(_back(replace(state, phase=Waiting(Action.LIST, now_s))), records, now_s)
        case Waiting(action) if state.away:
            return _act(state, action, now_s)
    if state.held is None and state.contest is None:
        return state, ()
    known = state.held or state.contest
    record = None if known is None else record_of(records, known)
    same = known is not None and record is not None and stands(record, known)
    return (state, ()) if same else list_leases(replace(state, contest=None), now_s)


def _on_changes(state: LeasingState, changes: tuple[RecordChange, ...], now_s: float) -> Step:
    """Only the last change of the key that concerns us matters; while an effect is outstanding it is kept for later."""
    key = _key_concerned(state)
    latest = next((change for change in reversed(changes) if change.key == key), None)
    if latest is not None:
        return _when_idle(replace(state, noticed=latest), now_s)
    freed = state.held is None and state.refusals == 0 and any(change.record is None for change in changes)
    match state.phase:
        case Waiting(Action.LIST, at_s) if freed:
            return replace(state, phase=Waiting(Action.LIST, min(at_s, now_s + chance(state)))), ()
    return state, ()


# ------------------------------------------------------------------------------------------------ results of the store


def _on_result(state: LeasingState, result: Created | Replaced | Deleted | Failed, now_s: float) -> Step:
    match state.phase, result:
        case Pending(_, purpose), Failed(message, denied):
            return _on_failed(state, purpose, message, denied, now_s)
        case Pending(Delete(), purpose), Deleted():
            return _on_deleted(_back(state), purpose, now_s)
        case Pending(Create() | Replace(), purpose, sent_s), Created(Record() as record) | Replaced(Record() as record):
            return _written(_back(state), purpose, record, sent_s, now_s)
        case Pending(Create() | Replace(), purpose), Created(None) | Replaced(None):
            return _overtaken(_back(state), purpose, now_s)
    return state, ()  # the result of nothing that we asked for


def _written(state: LeasingState, purpose: Purpose, record: Record, sent_s: float, now_s: float) -> Step:
    match purpose:
        case Purpose.CONTEST:
            return wait_for_answer(state, decode_lease(record), now_s)
        case Purpose.LEAVE:
            return settle(replace(state, held=decode_lease(record)), now_s)
    return _gained(state, purpose, record, sent_s, now_s)


def _overtaken(state: LeasingState, purpose: Purpose, now_s: float) -> Step:
    """Somebody was faster: the key is no longer as we knew it."""
    match purpose:
        case Purpose.CLAIM if state.contest is not None:
            return refused(state, state.contest.subnets, now_s)
        case Purpose.ACQUIRE | Purpose.ADOPT | Purpose.CONTEST:
            return race_lost(state, now_s)
    return list_leases(replace(state, phase=Waiting(Action.LIST, now_s)), now_s)


def _on_deleted(state: LeasingState, purpose: Purpose, now_s: float) -> Step:
    if purpose is Purpose.RELEASE:
        say = Say("info", "lease_released", "our lease has been given back")
        return stop(replace(state, held=None, expires_s=None), "released"), (say,)
    return settle(replace(state, discard=state.discard[1:]), now_s)


def _on_failed(state: LeasingState, purpose: Purpose, message: str, denied: bool, now_s: float) -> Step:
    """The store is away: what is held stays held, and we ask again with back-off."""
    if state.releasing:
        return stop(state, f"not released: {message}"), ()
    held = "" if state.held is None else f"; {state.held.subnets} stays in use"
    problem = f"the lease store fails: {message}{held}"
    says = () if problem == state.problem else (Say("debug", "lease_store_failed", problem),)
    unsure = state.unsure or purpose is not Purpose.LIST
    state = replace(state, problem=problem, away=True, unsure=unsure, contest=None)
    return wait(state, Action.RENEW if purpose is Purpose.RENEW else Action.LIST, AWAY_S, now_s), says


def _gained(state: LeasingState, purpose: Purpose, record: Record, sent_s: float, now_s: float) -> Step:
    """A write of ours is done: this is our lease now."""
    lease = decode_lease(record)
    taken_over = purpose in (Purpose.ADOPT, Purpose.CLAIM, Purpose.DEFEND)
    level, event = _NEWS[purpose]
    what = "reservation" if lease.is_reservation else "lease"
    state = replace(
        state,
        held=lease,
        preferred=lease.subnets,
        expires_s=None if lease.is_reservation else sent_s + state.identity.ttl_s,
        unsure=False,
        refusals=0,
        contest=None,
        defended_s=now_s if taken_over else state.defended_s,
    )
    return then(Say(level, event, f"{what} {lease.subnets} {event.removeprefix('lease_')}"), settle(state, now_s))


_NEWS = {
    Purpose.ACQUIRE: ("info", "lease_acquired"),
    Purpose.ADOPT: ("info", "lease_adopted"),
    Purpose.RENEW: ("debug", "lease_renewed"),
    Purpose.DEFEND: ("warning", "lease_defended"),
    Purpose.CLAIM: ("warning", "lease_claimed"),
}


# ------------------------------------------------------------------------------------------------ small helpers


def _named(identity: Identity, attributes: NodeAttributes) -> Identity:
    """Whatever the attributes say, they carry our node id."""
    features = attributes.flanpy.features if attributes.flanpy else frozenset()
    return replace(identity, attributes=replace(attributes, flanpy=FlanpyInfo(identity.node_id, features)))


def _when_idle(state: LeasingState, now_s: float) -> Step:
    return settle(state, now_s) if isinstance(state.phase, Waiting) else (state, ())


def _back(state: LeasingState) -> LeasingState:
    """The store has answered."""
    return replace(state, away=False)


def _key_concerned(state: LeasingState) -> str | None:
    match state.phase:
        case Pending(Create(key) | Replace(key)):
            return key
    lease = state.contest or state.held
    return None if lease is None else key_of(lease.subnets)
