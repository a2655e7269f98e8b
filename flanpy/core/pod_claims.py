"""What this node writes into the pod registry: from the pods that are attached here and what stands there, to writes; no I/O, no clock.

    nothing stands for the address            write
    ours stands, bound to another etcd lease  write again
    another node's, the same pod (by name)    the pod has come here: take it over, once in the life of an attachment
    another node's, another pod               who registered first stands; the newcomer is refused and said
    refused by everybody (unreadable, stale)  write over it
    ours stands, no such pod is attached      delete

"Once": an old node that still has the pod's old copy attached would take the address back with every restart otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from flanpy.core.attached import AttachedPod
from flanpy.core.pods import Pod, PodEntry, PodJudge, PodView, Registry, encode_pod, pod_key
from flanpy.model import Refusal


@dataclass(frozen=True, slots=True)
class WritePod:
    """Write a key that must still be at that revision (0: must not exist), bound to an etcd lease; 0: to one of its own."""

    key: str
    value: bytes
    expected_mod_revision: int
    etcd_lease_id: int
    attachment: str = ""


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete a key that must still be at that revision."""

    key: str
    expected_mod_revision: int


PodEffect = WritePod | DeletePod


@dataclass(frozen=True, slots=True)
class Claims:
    """``here``: pods whose address is to be served on this node; ``gone``: attached here, but registered by another node by now."""

    here: tuple[AttachedPod, ...] = ()
    gone: tuple[AttachedPod, ...] = ()
    effects: tuple[PodEffect, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: this node's id and the etcd lease of its subnet (0: a reservation); attachments that have had their address once."""

    node_id: str
    etcd_lease_id: int
    claimed: Collection[str] = frozenset()
    due: Collection[str] = frozenset()
    """Keys to be written again though they say the right thing, because their own etcd leases run out."""
    knows_all: bool = True
    """Whether a pod that is not among the attached ones is not attached; else nothing is deleted."""


def claim(attached: Iterable[AttachedPod], registry: Registry, view: PodView, judge: PodJudge, who: Claimant) -> Claims:
    """What to do about the pods that are attached here."""
    here: list[AttachedPod] = []
    gone: list[AttachedPod] = []
    effects: list[PodEffect] = []
    refusals: list[Refusal] = []
    claimed_keys: dict[str, AttachedPod] = {}
    for pod in sorted(attached, key=lambda pod: pod.place):
        key = pod_key(pod.address)
        reason = judge.unfit(pod.address)
        if reason is None and key in claimed_keys:
            reason = f"attached twice on this node; {claimed_keys[key].attachment} has it"
        entry = registry.entries.get(key)
        if reason is None and entry is not None and key in view.places and entry.pod.node != who.node_id:
            if not _is_same(entry, pod):
                reason = f"node {entry.pod.node} has registered it first, for pod {entry.pod.shown}"
            elif pod.attachment in who.claimed:
                gone.append(pod)
                continue
        if reason is not None:
            refusals.append(Refusal(key, f"pod {_shown(pod)} attached here: {reason}"))
            continue
        claimed_keys[key] = pod
        here.append(pod)
        effects += _write(pod, registry, who)
    effects += (
        DeletePod(key, entry.mod_revision)
        for key, entry in registry.entries.items()
        if who.knows_all and entry.pod.node == who.node_id and key not in claimed_keys
    )
    return Claims(tuple(here), tuple(gone), tuple(effects), tuple(refusals))


def _write(pod: AttachedPod, registry: Registry, who: Claimant) -> Iterable[PodEffect]:
    key = pod_key(pod.address)
    value = encode_pod(Pod(pod.address, who.node_id, pod.namespace, pod.name, pod.container))
    entry = registry.entries.get(key)
    if entry is not None and encode_pod(entry.pod) == value and key not in who.due:
        bound = entry.etcd_lease_id
        if bound == who.etcd_lease_id or (bound and not who.etcd_lease_id):
            return ()
    return (WritePod(key, value, registry.revisions.get(key, 0), who.etcd_lease_id, pod.attachment),)


def _is_same(entry: PodEntry, pod: AttachedPod) -> bool:
    return entry.pod.identity == Pod(pod.address, "", pod.namespace, pod.name, pod.container).identity


def _shown(pod: AttachedPod) -> str:
    return Pod(pod.address, "", pod.namespace, pod.name, pod.container).shown
