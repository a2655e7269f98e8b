"""What to do about our lease: after a listing, after a change of our key, and when nothing is outstanding. No I/O.

``core.leasing`` has the story; ``core.lease_moves`` the single moves. All functions are called with nothing outstanding.
"""

from __future__ import annotations

from dataclasses import replace

from flanpy.core.allocate import FLANNEL_WINDOW, choose_subnet, fits, is_free, is_part
from flanpy.core.codec import decode_lease, encode_attributes, key_of
from flanpy.core.lease_events import Action, LeasingState, Pending, Purpose, Say, Waiting
from flanpy.core.lease_moves import (
    CONTEST_S,
    CONTESTED,
    EXHAUSTED_S,
    LEAVING,
    Step,
    create,
    delete,
    list_leases,
    lost,
    own_value,
    refused,
    rest,
    stop,
    then,
    wait,
    write,
)
from flanpy.core.ownership import Survey, is_inherited, is_own, survey
from flanpy.errors import CodecError, PoolExhausted
from flanpy.model import Lease, Record, RecordChange, RecordSet

GONE_AGAIN_S = 10.0
"""A key that is found deleted twice within this time is registered again only after as long: no flapping."""


def settle(state: LeasingState, now_s: float) -> Step:
    """Nothing is outstanding: do what has come up meanwhile, else wait for the renewal or for what was being waited for."""
    noticed, state = state.noticed, replace(state, noticed=None)
    if state.releasing:
        return _give_back(state, now_s)
    if state.relist:
        return list_leases(_idle(state, now_s), now_s)
    if state.contest is not None:
        return _judge_contest(state, state.contest, noticed, now_s)
    if state.held is not None:
        return _settle_held(state, state.held, noticed, now_s)
    return state, ()


def _settle_held(state: LeasingState, held: Lease, noticed: RecordChange | None, now_s: float) -> Step:
    if noticed is not None and noticed.key == key_of(held.subnets) and noticed.revision > held.mod_revision:
        return _judge_own_change(_idle(state, now_s), held, noticed.record, now_s)
    if encode_attributes(held.attributes) != own_value(state):
        return write(state, Purpose.RENEW, held, now_s)
    if state.discard:
        return delete(state, Purpose.DISCARD, state.discard[0], now_s)
    return (rest(state) if isinstance(state.phase, Pending) else state), ()


def _idle(state: LeasingState, now_s: float) -> LeasingState:
    return replace(state, phase=Waiting(Action.LIST, now_s))


def _give_back(state: LeasingState, now_s: float) -> Step:
    if state.held is None or state.held.is_reservation:
        return stop(state, "released"), ()
    if LEAVING in _features(state.held):
        return delete(state, Purpose.RELEASE, state.held, now_s)
    return write(state, Purpose.LEAVE, state.held, now_s)


# ------------------------------------------------------------------------------------------------ our key has changed


def _judge_own_change(state: LeasingState, held: Lease, record: Record | None, now_s: float) -> Step:
    """Our key was deleted, or written by somebody else, after the revision that we know."""
    if record is not None:
        return _judge_overwritten(state, held, record, now_s)
    problem = f"our lease {held.subnets} was deleted or has expired: registering it again"
    again, state = now_s - state.gone_s < GONE_AGAIN_S, replace(state, gone_s=now_s, problem=problem)
    following = (wait(state, Action.LIST, (GONE_AGAIN_S, GONE_AGAIN_S), now_s), ()) if again else list_leases(state, now_s)
    return then(Say("warning", "lease_gone", problem), following)


def _judge_overwritten(state: LeasingState, held: Lease, record: Record, now_s: float) -> Step:
    same_key = record.create_revision == held.create_revision
    lease = _decoded(record)
    own = lease is not None and is_own(lease, state.identity.node_id, state.addresses)
    ours = lease is not None and (own or is_inherited(lease, state.identity.attributes.address))
    if lease is not None and own and state.unsure:
        return settle(rest(replace(state, held=lease, unsure=False)), now_s)  # our own write, whose answer was lost
    if lease is not None and own and record.mod_revision < held.mod_revision:
        say = Say("warning", "lease_rewound", f"etcd has an older state of our lease {held.subnets}: writing it anew")
        return then(say, write(state, Purpose.RENEW, lease, now_s))
    if lease is not None and ours and not same_key:
        return write(state, Purpose.ADOPT, lease, now_s)
    if lease is not None and own and CONTESTED in _features(lease):
        say = Say("warning", "node_id_contested", "another node asks whether we live: it has our node id")
        return then(say, write(state, Purpose.RENEW, lease, now_s))
    other = None if lease is None or lease.attributes.flanpy is None else lease.attributes.flanpy.node
    if not same_key or other not in (None, state.identity.node_id):
        after, say = lost(state, held, f"{f'node {other}' if other else 'another node'} has it")
        return then(say, list_leases(after, now_s))
    return _defend(state, held, record, now_s)


def _defend(state: LeasingState, held: Lease, record: Record, now_s: float) -> Step:
    """Somebody wrote our living key in our name, or garbage: whoever came last yields, the other writes it back."""
    readable = _decoded(record) is not None
    if readable and now_s - state.defended_s < CONTEST_S:
        return refused(state, held.subnets, now_s)
    say = Say("warning", "lease_overwritten", f"somebody else wrote our lease {held.subnets}: writing it back")
    seen = replace(held, mod_revision=record.mod_revision, etcd_lease_id=record.etcd_lease_id if readable else held.etcd_lease_id)
    return then(say, write(state, Purpose.DEFEND, seen, now_s))


def _judge_contest(state: LeasingState, contest: Lease, noticed: RecordChange | None, now_s: float) -> Step:
    """We have marked a lease with our node id; is there an answer?"""
    if noticed is None or noticed.key != key_of(contest.subnets) or noticed.revision <= contest.mod_revision:
        return state, ()
    state = _idle(replace(state, contest=None), now_s)
    return list_leases(state, now_s) if noticed.record is None else refused(state, contest.subnets, now_s)


def _decoded(record: Record) -> Lease | None:
    try:
        return decode_lease(record)
    except CodecError:
        return None


def _features(lease: Lease) -> frozenset[str]:
    return frozenset() if lease.attributes.flanpy is None else lease.attributes.flanpy.features


# ------------------------------------------------------------------------------------------------ a listing


def decide(state: LeasingState, records: RecordSet, now_s: float) -> Step:
    """What the listing that we asked for means for us."""
    if state.noticed is not None and state.noticed.revision <= records.revision:
        state = replace(state, noticed=None)
    identity = state.identity
    found = survey(records.records, identity.node_id, identity.attributes.address, state.addresses, state.preferred)
    found = replace(found, taken=tuple(block for block in found.taken if is_part(state.config, block)))
    held = state.held
    if held is None:
        return _choose(state, found, now_s)
    record = record_of(records, held)
    if record is not None and not stands(record, held):
        return _judge_overwritten(state, held, record, now_s)
    if record is not None and fits(state.config, held.subnets):
        return settle(rest(state), now_s)
    if record is None and fits(state.config, held.subnets) and is_free(held.subnets, found.taken):
        return _register_again(state, held, found, now_s)
    if record is None and not is_free(held.subnets, found.taken):
        after, say = lost(state, held, "its range has been leased to another node")
        return then(say, _choose(after, found, now_s))
    return _choose(replace(state, preferred=held.subnets), found, now_s)


def _register_again(state: LeasingState, held: Lease, found: Survey, now_s: float) -> Step:
    """The subnet that our pods use, though an older lease of ours be there: a backup may have brought that back."""
    older = tuple(lease for lease in found.own if not lease.is_reservation)
    return create(replace(state, discard=older), held.subnets, now_s)


def record_of(records: RecordSet, lease: Lease) -> Record | None:
    """The record of a lease's key."""
    key = key_of(lease.subnets)
    return next((record for record in records.records if record.key == key), None)


def stands(record: Record, lease: Lease) -> bool:
    """Whether the record is the lease as we know it. Compared whole: a wiped store counts its revisions from 1 again."""
    return _decoded(record) == lease


def _choose(state: LeasingState, found: Survey, now_s: float) -> Step:
    """Take over what is ours, ask for what may be, else take something new. Once refused, we ask even at our own address."""
    own, twins = ((), (*found.twins, *found.own)) if state.refusals else (found.own, found.twins)
    usable = [lease for lease in own if fits(state.config, lease.subnets)]
    usable += [lease for lease in twins if lease.subnets == state.preferred and not state.refusals]
    if usable:
        return write(_discarding(state, own), Purpose.ADOPT, usable[0], now_s)
    doubtful = next((lease for lease in twins if fits(state.config, lease.subnets)), None)
    if doubtful is not None:
        return write(state, Purpose.CONTEST, doubtful, now_s)
    inherited = next((lease for lease in found.inherited if fits(state.config, lease.subnets)), None)
    if inherited is not None:
        return write(_discarding(state, own), Purpose.ADOPT, inherited, now_s)
    return _acquire(_discarding(state, own), found, now_s)


def _discarding(state: LeasingState, own: tuple[Lease, ...]) -> LeasingState:
    """Leases of ours that do not fit go once we have another."""
    return replace(
        state, discard=tuple(lease for lease in own if not (lease.is_reservation or fits(state.config, lease.subnets)))
    )


def _acquire(state: LeasingState, found: Survey, now_s: float) -> Step:
    """The more races we have lost, the wider we choose: a thousand nodes that join at once spread out."""
    try:
        window = FLANNEL_WINDOW << min(3 * state.attempt, 12)
        subnets = choose_subnet(state.config, found.taken, state.preferred, state.identity.pick, window)
    except PoolExhausted as exc:
        says = () if state.problem == str(exc) else (Say("error", "pool_exhausted", str(exc)),)
        return wait(replace(state, problem=str(exc)), Action.LIST, EXHAUSTED_S, now_s), says
    return create(state, subnets, now_s)


def wait_for_answer(state: LeasingState, marked: Lease, now_s: float) -> Step:
    """The mark is on the lease; its owner, if it lives, writes it back within CONTEST_S."""
    problem = (
        f"the lease {marked.subnets} has our node id {state.identity.node_id} but the address {marked.attributes.address}: "
        f"waiting {CONTEST_S:.0f} s to see whether another living node has our node id"
    )
    state = replace(state, contest=marked, problem=problem, phase=Waiting(Action.CLAIM, now_s + CONTEST_S))
    return then(Say("warning", "node_id_in_doubt", problem), settle(state, now_s))
