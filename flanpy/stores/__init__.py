"""Lease stores behind one Protocol: ``etcd`` (the real one) and ``memory`` (a fake that passes the same contract tests).

A store moves records; it knows nothing of what a value means (``core.codec`` does) and holds no state of the agent.
Every call blocks for a bounded time and is made from a thread that may wait; the agent's loop never calls a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from flanpy.model import Record, RecordChange, RecordSet


class Watch(Protocol):
    """A running watch; iterate it from one thread, ``cancel`` it from any."""

    def __iter__(self) -> Iterator[tuple[RecordChange, ...]]:
        """Yield batches of changes in revision order, each batch complete up to one revision.

        An empty batch is a sign of life: the server has confirmed that nothing was missed so far. Never ends by itself:
        a stream that ends, is cancelled by the server, or is silent for longer than the liveness limit raises.

        Raises Compacted, StoreUnavailable, StoreDenied; returns normally only after ``cancel``.
        """

    def cancel(self) -> None:
        """End the iteration soon; safe to call twice and from any thread."""


class Store(Protocol):
    """Records below one etcd prefix. Keys are relative to it (``config``, ``subnets/10.5.52.0-24``).

    Every method may raise StoreUnavailable (try again) or StoreDenied (an operator has to act).
    """

    def read(self, key: str) -> Record | None:
        """The record of one key, read linearizably, or None."""

    def list(self, directory: str) -> RecordSet:
        """All records below ``directory`` (``subnets/``), consistent at one revision."""

    def put(self, key: str, value: bytes, *, expected_mod_revision: int | None = None) -> Record | None:
        """Write a key that never expires. With ``expected_mod_revision`` (0: must not exist) a lost race returns None."""

    def create(self, key: str, value: bytes, ttl_s: int) -> Record | None:
        """Write a key that does not exist yet, attached to a new etcd lease of ``ttl_s``; None when somebody was faster.

        A lost race leaves no etcd lease behind.
        """

    def replace(self, key: str, value: bytes, expected_mod_revision: int, ttl_s: int) -> Record | None:
        """Write a key only if nobody has since ``expected_mod_revision`` and attach it to a fresh etcd lease.

        ``ttl_s`` 0 keeps the key without expiry (a reservation stays one). None when the revision has moved on.
        The etcd lease that the key had before is revoked if it is ours alone, so that renewals do not pile up.
        """

    def attach(self, key: str, value: bytes, etcd_lease_id: int, expected_mod_revision: int) -> Record | None:
        """Write a key (only at that revision; 0: must not exist) and attach it to an etcd lease that is there already.

        None when the race was lost. StoreUnavailable when the etcd lease is gone. The etcd lease that the key had before is
        revoked if nothing else hangs on it.
        """

    def delete(self, key: str, expected_mod_revision: int | None = None) -> bool:
        """Delete a key (only at that revision, if given); whether something was deleted."""

    def seconds_left(self, etcd_lease_id: int) -> int | None:
        """Remaining time to live of an etcd lease, seconds; None when it is gone."""

    def watch(self, directory: str, from_revision: int) -> Watch:
        """Watch everything below ``directory`` from ``from_revision`` on (inclusive)."""

    def reconnect(self) -> None:
        """This machine's ways to the server are others now, and old connections may lead nowhere: take new ones. Does not wait.

        Running watches end as by ``cancel``, calls under way fail as when the server is away. Safe from any thread.
        """

    def close(self) -> None:
        """Give up connections and threads; running watches end."""
