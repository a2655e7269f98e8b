"""The lease store on etcd (v3 API, 3.4.23 and newer): records below one prefix. Knows nothing of what a record means.

A write that a lost race must undo is a transaction on the key's revision, with an etcd lease granted before it:

    grant(id of our own choice) -> txn if revision(key) == expected then put(key, value, id) -> won: done, the old etcd lease goes
                                                                                             -> lost: revoke(id), None
                                                                                             -> no answer: read back

After "no answer" the transaction may have been applied, so the key is read back and our etcd lease id tells whether it was. Since
the id is chosen here, even a grant whose answer was lost can be revoked; what cannot be revoked now is tried again with a later
write, and only if no key hangs on it. No write is ever sent twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from types import TracebackType
from typing import Any

from flanpy.errors import Compacted, StoreDenied, StoreError, StoreUnavailable
from flanpy.model import Record, RecordSet
from flanpy.stores.etcd_options import EtcdOptions, normalise_prefix
from flanpy.stores.etcd_session import Session, grpc, rpc
from flanpy.stores.etcd_watch import EtcdWatch, KeySpace

__all__ = ["EtcdOptions", "EtcdStore", "open_store"]

PAGE_SIZES = (500, 50, 5, 1)
"""Keys of one page; the next smaller one is taken when a page does not fit into gRPC's receive limit."""

LIST_ATTEMPTS = 5
"""How often a list starts again when a compaction takes its revision away."""

CLEANUP_TIMEOUT_S = 2.0
"""Limit of calls that tidy up after another call has used its time."""

ORPHAN_PATIENCE_S = 60.0
"""How long a lease whose grant had no answer may still appear: the request can sit in a server that hangs."""

READ_BACK_PAUSE_S = 0.1
"""Between attempts to find out what became of a write whose answer was lost."""


def open_store(options: EtcdOptions) -> EtcdStore:
    """A store on the cluster that ``options`` name. Connects with the first call; raises StoreDenied for unreadable key files."""
    return EtcdStore(options)


class EtcdStore:
    """``flanpy.stores.Store`` on etcd; every method is safe from any thread."""

    def __init__(self, options: EtcdOptions) -> None:
        self._session = Session(options)
        self._keys = KeySpace(normalise_prefix(options.prefix))
        self._lock = threading.Lock()
        self._watches: set[EtcdWatch] = set()
        self._orphans: dict[int, float] = {}

    def __enter__(self) -> EtcdStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read(self, key: str) -> Record | None:
        """The record of one key, read linearizably, or None."""
        return self._read(key, None)

    def list(self, directory: str) -> RecordSet:
        """All records below ``directory``, consistent at one revision, however many pages it takes."""
        for _ in range(LIST_ATTEMPTS):
            try:
                return self._list_once(directory)
            except Compacted:
                continue
        problem = f"listing {directory}: compacted away {LIST_ATTEMPTS} times while reading; compact less often"
        raise StoreUnavailable(self._session.explain(problem))

    def put(self, key: str, value: bytes, *, expected_mod_revision: int | None = None) -> Record | None:
        """Write a key that never expires; with ``expected_mod_revision`` (0: must not exist) a lost race returns None."""
        return self._written(key, value, 0, self._write(key, value, 0, expected_mod_revision))

    def create(self, key: str, value: bytes, ttl_s: int) -> Record | None:
        """Write a key that does not exist yet, on a new etcd lease; None when somebody was faster."""
        lease_id = self._grant(ttl_s)
        try:
            answer = self._write(key, value, lease_id, 0)
        except StoreError as exc:
            ours = self._read_back(key, lease_id) if _may_be_applied(exc) else None
            if ours is None:
                self._revoke(lease_id)  # a transaction that is still on its way fails then
                raise
            return ours
        if not answer.succeeded:
            self._revoke(lease_id)
        self._sweep_orphans()
        return self._written(key, value, lease_id, answer)

    def replace(self, key: str, value: bytes, expected_mod_revision: int, ttl_s: int) -> Record | None:
        """Write a key only if nobody has since ``expected_mod_revision``, on a fresh etcd lease (``ttl_s`` 0: on none)."""
        if ttl_s == 0:
            return self.put(key, value, expected_mod_revision=expected_mod_revision)
        lease_id = self._grant(ttl_s)
        try:
            answer = self._write(key, value, lease_id, expected_mod_revision)
        except StoreError as exc:
            ours = self._read_back(key, lease_id) if _may_be_applied(exc) else None
            if ours is None:
                self._remember_orphan(lease_id)  # not revoked: a transaction still on its way would lose the key with it
                raise
            return ours
        if not answer.succeeded:
            self._revoke(lease_id)
        self._sweep_orphans()
        return self._written(key, value, lease_id, answer)

    def attach(self, key: str, value: bytes, etcd_lease_id: int, expected_mod_revision: int) -> Record | None:
        """Write a key only at that revision, on an etcd lease that is there already; None when the race was lost."""
        answer = self._write(key, value, etcd_lease_id, expected_mod_revision)
        return self._written(key, value, etcd_lease_id, answer)

    def delete(self, key: str, expected_mod_revision: int | None = None) -> bool:
        """Delete a key (only at that revision, if given); whether something was deleted."""
        full_key = self._keys.full(key)
        delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=full_key, prev_kv=True))
        answer = self._transact(full_key, expected_mod_revision, delete, f"deleting {key}")
        deleted = answer.responses[0].response_delete_range.prev_kvs if answer.succeeded else ()
        for item in deleted:
            self._drop_lease(item.lease)
        return bool(deleted)

    def seconds_left(self, etcd_lease_id: int) -> int | None:
        """Remaining time to live of an etcd lease, seconds; None when it is gone."""
        answer = self._time_to_live(etcd_lease_id)
        return None if answer.TTL < 0 else int(answer.TTL)

    def watch(self, directory: str, from_revision: int) -> EtcdWatch:
        """Watch everything below ``directory`` from ``from_revision`` on (inclusive)."""
        watch = EtcdWatch(self._session, self._keys, directory, from_revision, self._forget_watch)
        with self._lock:
            self._watches.add(watch)
        return watch

    def reconnect(self) -> None:
        """Leave the connections that there are: watches end as by ``cancel``, calls under way fail, new ones take new connections."""
        left = self._session.leave_links()
        self._cancel_watches()  # whoever watched may list again by now, and must not meet what is closed here
        for link in left:
            link.channel.close()

    def close(self) -> None:
        """Give up connections and threads; running watches end."""
        self._cancel_watches()
        self._session.close()

    def _cancel_watches(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.cancel()

    # -------------------------------------------------------------------------------------------- reading

    def _read(self, key: str, timeout_s: float | None) -> Record | None:
        request = rpc.RangeRequest(key=self._keys.full(key))
        answer = self._session.call(lambda link: link.kv.Range, request, f"reading {key}", timeout_s=timeout_s)
        return self._keys.record(answer.kvs[0]) if answer.kvs else None

    def _list_once(self, directory: str) -> RecordSet:
        """One walk through the pages; raises Compacted when the revision of the first page is gone before the last one."""
        start, end = self._keys.bounds(directory)
        records: list[Record] = []
        revision, cluster, size, more = 0, 0, 0, True
        while more:
            request = rpc.RangeRequest(key=start, range_end=end, limit=PAGE_SIZES[size], revision=revision)
            try:
                answer = self._session.call(lambda link: link.kv.Range, request, f"listing {directory}")
            except StoreError as exc:
                match _code(exc):
                    case grpc.StatusCode.OUT_OF_RANGE:
                        raise Compacted(str(exc)) from exc
                    case grpc.StatusCode.RESOURCE_EXHAUSTED if size + 1 < len(PAGE_SIZES):
                        size += 1
                        continue
                raise
            revision, cluster = revision or answer.header.revision, answer.header.cluster_id
            records.extend(self._keys.record(item) for item in answer.kvs)
            more = answer.more and bool(answer.kvs)
            start = answer.kvs[-1].key + b"\0" if answer.kvs else start
        return RecordSet(revision, tuple(records), cluster)

    # -------------------------------------------------------------------------------------------- writing

    def _write(self, key: str, value: bytes, lease_id: int, expected_mod_revision: int | None) -> Any:
        full_key = self._keys.full(key)
        put = rpc.PutRequest(key=full_key, value=value, lease=lease_id, prev_kv=True)
        return self._transact(full_key, expected_mod_revision, rpc.RequestOp(request_put=put), f"writing {key}")

    def _transact(self, full_key: bytes, expected_mod_revision: int | None, then: Any, doing: str) -> Any:
        """``then``, if the key's revision is the expected one; a key that does not exist has revision 0."""
        request = rpc.TxnRequest(success=[then])
        if expected_mod_revision is not None:
            equal, mod = rpc.Compare.EQUAL, rpc.Compare.MOD
            request.compare.add(result=equal, target=mod, key=full_key, mod_revision=expected_mod_revision)
        return self._session.call(lambda link: link.kv.Txn, request, doing)

    def _written(self, key: str, value: bytes, lease_id: int, answer: Any) -> Record | None:
        """The record that a write has left, its previous etcd lease tidied away; None when the write lost its race."""
        if not answer.succeeded:
            return None
        revision, previous = answer.header.revision, answer.responses[0].response_put.prev_kv
        self._drop_lease(previous.lease)
        return Record(key, value, previous.create_revision or revision, revision, lease_id)

    def _read_back(self, key: str, lease_id: int) -> Record | None:
        """The record, if it hangs on our etcd lease; None when it does not, or etcd does not answer for a while."""
        deadline = time.monotonic() + CLEANUP_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                record = self._read(key, left_s)
            except StoreUnavailable:
                time.sleep(READ_BACK_PAUSE_S)  # the connection is being made again
            except StoreDenied:
                return None
            else:
                return record if record is not None and record.etcd_lease_id == lease_id else None
        return None

    # -------------------------------------------------------------------------------------------- etcd leases

    def _grant(self, ttl_s: int) -> int:
        lease_id = secrets.randbits(62) | 1
        try:
            self._session.call(
                lambda link: link.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease_id), "granting a lease"
            )
        except StoreError as exc:
            if _may_be_applied(exc):
                self._remember_orphan(lease_id)
            raise
        return lease_id

    def _revoke(self, lease_id: int) -> None:
        """Revoke an etcd lease of ours; when that fails now, a later write tries again, and at the latest it expires."""
        try:
            request = rpc.LeaseRevokeRequest(ID=lease_id)
            self._session.call(lambda link: link.lease.LeaseRevoke, request, "revoking a lease", timeout_s=CLEANUP_TIMEOUT_S)
        except StoreError as exc:
            if _code(exc) is not grpc.StatusCode.NOT_FOUND:
                self._remember_orphan(lease_id)

    def _drop_lease(self, lease_id: int) -> None:
        """Revoke an etcd lease that has lost a key (0: there was none), unless other keys hang on it."""
        if lease_id:
            try:
                self._revoke_if_unused(lease_id)
            except StoreError:
                self._remember_orphan(lease_id)

    def _revoke_if_unused(self, lease_id: int) -> bool:
        """Whether the lease was there: it is revoked now, or a key hangs on it."""
        answer = self._time_to_live(lease_id, CLEANUP_TIMEOUT_S)
        if answer.TTL >= 0 and not answer.keys:
            self._revoke(lease_id)
        return bool(answer.TTL >= 0)

    def _time_to_live(self, lease_id: int, timeout_s: float | None = None) -> Any:
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
        return self._session.call(lambda link: link.lease.LeaseTimeToLive, request, "asking for a lease", timeout_s=timeout_s)

    def _remember_orphan(self, lease_id: int) -> None:
        with self._lock:
            self._orphans.setdefault(lease_id, time.monotonic())

    def _sweep_orphans(self) -> None:
        """Now that etcd answers, revoke what an earlier failure left; a lease that holds a key by now is in use and stays."""
        with self._lock:
            orphans = dict(self._orphans)
        for lease_id, since in orphans.items():
            try:
                was_there = self._revoke_if_unused(lease_id)
            except StoreError:
                return
            if was_there or time.monotonic() - since > ORPHAN_PATIENCE_S:
                with self._lock:
                    self._orphans.pop(lease_id, None)

    def _forget_watch(self, watch: EtcdWatch) -> None:
        with self._lock:
            self._watches.discard(watch)


def _code(error: StoreError) -> Any:
    """gRPC's status code below a StoreError, or None."""
    cause = error.__cause__
    return cause.code() if isinstance(cause, grpc.RpcError) else None


def _may_be_applied(error: StoreError) -> bool:
    """Whether etcd may have done what was asked although the call failed: it did not refuse, it only did not answer."""
    return isinstance(error, StoreUnavailable)
