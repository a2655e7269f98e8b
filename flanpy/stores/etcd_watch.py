"""A watch on etcd that is never silently dead, and the names of keys below the prefix. Does not reconnect: its user lists again.

    probe      a linearizable read of the directory: is the login good, may we read it, has the store reached this revision?
    open       one stream with one watch on it, in fragments, with "hasleader" (a member cut off from its leader ends the stream)
    dog        a thread that asks for progress every ``progress_s`` and cancels a stream that was silent for ``silence_s`` while
               somebody waited on it; time that the user spends on a batch does not count
               with a login it also reads the directory each time, because etcd checks a watch's permission only when it opens
    end        whatever ends the stream is an error, except our own ``cancel``

The revision in an answer to a progress request is not used: servers before 3.4.25 send it ahead of events that are on their way.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flanpy.errors import Compacted, StoreDenied, StoreError, StoreUnavailable
from flanpy.model import Record, RecordChange
from flanpy.stores.etcd_session import Session, grpc, is_token_trouble, rpc

_DENIED_WORDS = ("permission denied", "auth token", "user name is empty", "auth store")


class KeySpace:
    """Keys relative to the prefix, and back."""

    def __init__(self, prefix: str) -> None:
        self._root = f"{prefix}/"

    def full(self, key: str) -> bytes:
        """etcd's key for a relative one."""
        return (self._root + key).encode()

    def bounds(self, directory: str) -> tuple[bytes, bytes]:
        """First key below ``directory`` and the first one after it, as etcd's half-open range."""
        start = self.full(directory if directory.endswith("/") or not directory else f"{directory}/")
        return start, start[:-1] + bytes([start[-1] + 1])

    def relative(self, key: bytes) -> str:
        """The name below the prefix; bytes that are not UTF-8 are written as escapes, no subnet key has any."""
        return key.decode(errors="backslashreplace").removeprefix(self._root)

    def record(self, item: Any) -> Record:
        """etcd's KeyValue as a Record."""
        return Record(self.relative(item.key), item.value, item.create_revision, item.mod_revision, item.lease)


class EtcdWatch:
    """``flanpy.stores.Watch``; iterate once, from one thread."""

    def __init__(
        self, session: Session, keys: KeySpace, directory: str, from_revision: int, on_end: Callable[[EtcdWatch], None]
    ) -> None:
        self._session = session
        self._keys = keys
        self._directory = directory
        self._doing = f"watching {directory or 'all keys'}"
        self._from_revision = from_revision
        self._on_end = on_end
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._call: Any = None
        self._cancelled = False
        self._over = threading.Event()
        self._waiting_since = math.inf
        self._bite: StoreError | None = None

    def __iter__(self) -> Iterator[tuple[RecordChange, ...]]:
        try:
            self._probe()
            yield from self._stream()
        except grpc.RpcError as exc:
            if not self._cancelled:
                raise self._meaning(exc) from exc
        except StoreError:
            if not self._cancelled:
                raise
        finally:
            self._end()

    def cancel(self) -> None:
        """End the iteration soon; safe to call twice and from any thread."""
        with self._lock:
            self._cancelled = True
        self._end()

    def _end(self) -> None:
        self._over.set()
        self._requests.put(None)
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()
        self._on_end(self)

    def _adopt(self, call: Any) -> None:
        """Make ``call`` the one that ``cancel`` ends."""
        with self._lock:
            self._call = call
            cancelled = self._cancelled
        if cancelled:
            call.cancel()

    def _probe(self) -> None:
        """Raise what stands against watching at all."""
        if self._cancelled:
            return
        revision = self._read_directory(started=self._adopt)
        if revision + 1 < self._from_revision:
            problem = f"the store is only at {revision}, it has lost its history"
            raise Compacted(self._session.explain(f"{self._doing} from revision {self._from_revision}: {problem}"))

    def _read_directory(self, **limits: Any) -> int:
        """The store's revision, by a linearizable read of at most one key; raises as any call does."""
        start, end = self._keys.bounds(self._directory)
        request = rpc.RangeRequest(key=start, range_end=end, limit=1, keys_only=True)
        revision: int = self._session.call(lambda link: link.kv.Range, request, self._doing, **limits).header.revision
        return revision

    def _stream(self) -> Iterator[tuple[RecordChange, ...]]:
        if self._cancelled:
            return
        link = self._session.link()
        self._requests.put(self._create_request())
        metadata = self._session.stream_metadata(link)
        try:
            call = link.watch.Watch(iter(self._requests.get, None), metadata=metadata)
        except ValueError as exc:  # gRPC's word for a closed channel
            raise StoreUnavailable(self._session.explain(f"{self._doing}: the store is closed")) from exc
        self._adopt(call)
        self._waiting_since = time.monotonic()
        threading.Thread(target=self._guard, args=(call,), name="etcd-watch-dog", daemon=True).start()
        try:
            yield from self._batches(call)
        except grpc.RpcError as exc:
            if not self._cancelled:
                self._session.give_up_on(link, exc)
            raise
        if not self._cancelled:
            raise StoreUnavailable(self._session.explain(f"{self._doing}: etcd ended the stream"))

    def _batches(self, call: Any) -> Iterator[tuple[RecordChange, ...]]:
        """One batch a response; the fragments of one response are put together first."""
        pieces: list[RecordChange] = []
        for answer in call:
            self._waiting_since = math.inf
            if self._cancelled:
                return
            self._refuse_cancelled(answer)
            pieces.extend(map(self._change, answer.events))
            if not answer.fragment:
                yield tuple(pieces)
                pieces = []
            self._waiting_since = time.monotonic()

    def _create_request(self) -> Any:
        start, end = self._keys.bounds(self._directory)
        create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=self._from_revision, fragment=True)
        return rpc.WatchRequest(create_request=create)

    def _change(self, event: Any) -> RecordChange:
        item = event.kv
        record = None if event.type == event.DELETE else self._keys.record(item)
        return RecordChange(item.mod_revision, self._keys.relative(item.key), record)

    def _guard(self, call: Any) -> None:
        """The dog: ask for a sign of life, cancel a stream that gives none or that we may not read any more."""
        limits = self._session.options
        while not self._over.wait(min(limits.progress_s, self._patience_s())):
            if self._patience_s() <= 0:
                silence = f"{self._doing}: no sign of life for {limits.silence_s:g} s"
                self._bite = StoreUnavailable(self._session.explain(silence))
            elif limits.username or limits.certfile:
                self._bite = self._denial()
            if self._bite is not None:
                call.cancel()
                return
            self._requests.put(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    def _denial(self) -> StoreError | None:
        try:
            self._read_directory(timeout_s=self._session.options.progress_s)
        except StoreDenied as exc:
            return exc
        except StoreUnavailable:
            return None  # the stream itself tells, in its own time
        return None

    def _patience_s(self) -> float:
        return max(0.0, self._waiting_since + self._session.options.silence_s - time.monotonic())

    def _refuse_cancelled(self, answer: Any) -> None:
        """Raise what the server's cancellation of the watch means."""
        if not answer.canceled:
            return
        reason = answer.cancel_reason or "no reason given"
        doing = f"{self._doing} from revision {self._from_revision}"
        if answer.compact_revision:
            raise Compacted(self._session.explain(f"{doing}: compacted up to revision {answer.compact_revision}"))
        if any(word in reason for word in _DENIED_WORDS):
            raise StoreDenied(self._session.explain(f"{doing}: refused: {reason}"))
        raise StoreUnavailable(self._session.explain(f"{doing}: cancelled by etcd: {reason}"))

    def _meaning(self, error: grpc.RpcError) -> StoreError:
        if self._bite is not None:
            return self._bite
        if is_token_trouble(error):
            return StoreUnavailable(self._session.explain(f"{self._doing}: the login has expired"))
        return self._session.translate(error, self._doing, self._session.options.silence_s)
