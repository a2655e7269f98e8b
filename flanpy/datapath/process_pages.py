"""Memory that we share with the datapath process: pages of counters, which it writes and we read without asking; sealed tables.

The process parses what strangers send, so nothing in its pages is believed further than a figure: they hold no length and no place, and are
only added up. Neither side can cut a page or a table short under the other's feet (SIGBUS): seals say so, and both sides ask for them.

Both are memfds: they live as long as somebody has them, whichever process that is, so counters go on where an earlier one has left them.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from flanpy.datapath import DatapathStats, PeerCount, VerdictCount
from flanpy.datapath.core import VERDICTS, WORK_COUNTERS, TableBlob, ffi, lib, peer_counts
from flanpy.model import Address

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
"""Of fcntl(2): no more seals; never smaller; never larger; never written again."""


class Pages:
    """The counters of every worker thread, ``per_queue`` for each queue."""

    def __init__(self, fd: int, queues: int, per_queue: int) -> None:
        self.fd = fd
        self._queues = queues
        self._per_queue = per_queue
        self._map = mmap.mmap(fd, queues * per_queue * lib.fp_page_bytes(), mmap.MAP_SHARED, mmap.PROT_READ)
        self._memory: Any = ffi.from_buffer("uint8_t[]", self._map)

    def close(self) -> None:
        """Unmap and close; safe to call twice."""
        if self.fd >= 0:
            ffi.release(self._memory)
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    def stats(self) -> DatapathStats:
        """All threads together."""
        sum_ = self._sum(0, self._queues * self._per_queue)
        verdicts = {
            name: VerdictCount(sum_.verdicts.by[number].packets, sum_.verdicts.by[number].bytes)
            for number, name in enumerate(VERDICTS)
        }
        counters = {name: sum_.work[number] for number, name in enumerate(WORK_COUNTERS)}
        return DatapathStats(generation=sum_.generation, verdicts=verdicts, counters=counters)

    def peers(self, peers: Sequence[Address]) -> dict[Address, PeerCount]:
        """What all threads have counted for these peers."""
        return peer_counts(peers, partial(lib.fp_peers_sum, self._memory, self._queues * self._per_queue))

    def failures(self) -> Iterator[tuple[int, str]]:
        """(queue, reason) of every queue whose worker cannot go on."""
        for queue in range(self._queues):
            failed = self._sum(queue * self._per_queue, self._per_queue).failed
            if failed:
                yield queue, os.strerror(failed) if failed in errno.errorcode else f"error {failed}"

    def _sum(self, first: int, count: int) -> Any:
        out = ffi.new("struct fp_stats *")
        lib.fp_stats_sum(self._memory + first * lib.fp_page_bytes(), count, out)
        return out


def new_pages(queues: int, per_queue: int) -> Pages:
    """Pages of zeros, which nobody can cut short under the process's feet."""
    fd = os.memfd_create("flanpy-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, queues * per_queue * lib.fp_page_bytes())  # what is not there now could kill the process later
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
        return Pages(fd, queues, per_queue)
    except BaseException:
        os.close(fd)
        raise


def is_pages(fd: int, queues: int, per_queue: int) -> bool:
    """Whether an earlier process's descriptor is memory for so many counters, that can be written and not be cut short."""
    return (
        _is_sealed(fd, F_SEAL_SHRINK)
        and not _is_sealed(fd, F_SEAL_WRITE)
        and os.fstat(fd).st_size >= queues * per_queue * lib.fp_page_bytes()
    )


def is_table(fd: int, size: int) -> bool:
    """Whether an earlier process's descriptor is a table that a process of this build takes: sealed, of this size and layout."""
    sealed = _is_sealed(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    if not sealed or not 0 < size == os.fstat(fd).st_size <= lib.FP_TABLE_BYTES_MAX:
        return False
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped, ffi.from_buffer(mapped) as memory:
        return bool(lib.fp_table_check(memory, size) == 0)


def _is_sealed(fd: int, seals: int) -> bool:
    try:
        return fcntl.fcntl(fd, F_GET_SEALS) & seals == seals
    except OSError:  # not a memory file at all
        return False


def sealed_table(blob: TableBlob) -> int:
    """A memfd with this table that nobody can change any more."""
    fd = os.memfd_create("flanpy-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(ffi.buffer(blob.memory, blob.size))
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd
