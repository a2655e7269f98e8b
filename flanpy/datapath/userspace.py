"""The userspace datapath in this very process: C threads between a TUN device and UDP sockets, started, fed, read and stopped here.

For benchmarks and tests of the workers: agents let flanpy-datapath have them (process.py), which outlives the agent.

ForwardTable --core.build_table--> flat blob --publish--> workers (csrc/worker.c)        no Python runs where packets do
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from flanpy.datapath import DatapathSettings, DatapathStats, PeerCount, VerdictCount
from flanpy.datapath.core import VERDICTS, WORK_COUNTERS, build_table, ffi, lib, peer_counts
from flanpy.datapath.sockets import UnderlaySockets
from flanpy.errors import DatapathError
from flanpy.model import Address, ForwardTable

FEATURES = frozenset({"ecn"})
"""What our receiver can take: ECN marks are combined as RFC 6040 says. No superpackets: every datagram must be a finished packet."""
IPV6 = "ipv6"
"""The feature of a receiver that takes IPv6 packets; flannel's do not."""


class TunQueues(Protocol):
    """What is needed of an open TUN device (``kernel.tun.Tun``)."""

    @property
    def fds(self) -> tuple[int, ...]:
        """One non-blocking descriptor for each queue."""

    @property
    def features(self) -> frozenset[str]:
        """Of ``csum``, ``tso``, ``uso``, ``coalesce``."""

    @property
    def degraded(self) -> tuple[str, ...]:
        """What the device has to do without."""

    def close(self) -> None:
        """Give the device up."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What hardly anybody changes. ICMP errors are limited for each worker; two threads a queue split the directions."""

    icmp_per_second: int = 100
    threads_per_queue: int = 2
    gso_retry_s: float = 60.0
    """A socket whose sends in trains were refused (EIO) tries them again after this; 0: never."""


class UserspaceDatapath:
    """A running userspace datapath. It owns the TUN queues and sockets that it is given and closes them, also when it cannot start."""

    kind = "userspace"
    process = None

    def __init__(
        self, settings: DatapathSettings, tun: TunQueues, underlay: UnderlaySockets, tuning: Tuning | None = None
    ) -> None:
        self.features = FEATURES | ({IPV6} if settings.tunnel_address6 is not None else frozenset())
        self.degraded = tun.degraded + underlay.degraded
        self._settings = settings
        self._tun = tun
        self._underlay = underlay
        self._lock = threading.Lock()
        self._handle: Any = None
        try:
            self._handle = _start(settings, tun, underlay, tuning or Tuning())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def publish(self, table: ForwardTable) -> None:
        """Forward by this table from now on; returns when every worker has it."""
        blob = build_table(table)
        with self._lock:
            error = lib.fp_datapath_publish(self._running(), blob.memory, blob.size)
        if error:
            raise DatapathError(f"{self._settings.device}: table {table.generation} was not taken up: {os.strerror(-error)}")

    def stats(self) -> DatapathStats:
        """Counters of all queues together."""
        pages = self._pages()
        verdicts = {
            name: VerdictCount(
                sum(page.verdicts.by[number].packets for page in pages), sum(page.verdicts.by[number].bytes for page in pages)
            )
            for number, name in enumerate(VERDICTS)
        }
        counters = {name: sum(page.work[number] for page in pages) for number, name in enumerate(WORK_COUNTERS)}
        return DatapathStats(generation=min(page.generation for page in pages), verdicts=verdicts, counters=counters)

    def peer_counts(self, peers: Sequence[Address]) -> Mapping[Address, PeerCount]:
        """What each of these peers was sent and has sent."""
        with self._lock:
            return peer_counts(peers, partial(lib.fp_datapath_peers, self._running()))

    def check(self, *, closely: bool = True) -> None:
        """Raise DatapathError when a worker cannot work any more."""
        for queue, page in enumerate(self._pages()):
            if page.failed:
                raise DatapathError(
                    f"{self._settings.device}: worker {queue} has stopped: {os.strerror(page.failed)} (has the TUN device been removed?)"
                )

    def close(self) -> None:
        """Stop the workers and close TUN queues and sockets; safe to call twice."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                lib.fp_datapath_stop(handle)
            self._tun.close()
            self._underlay.close()

    def teardown(self) -> None:
        """Nothing of this datapath outlives it."""
        self.close()

    def _running(self) -> Any:
        if self._handle is None:
            raise DatapathError(f"{self._settings.device}: the datapath is closed")
        return self._handle

    def _pages(self) -> list[Any]:
        pages = [ffi.new("struct fp_stats *") for _ in range(self._settings.queues)]
        with self._lock:
            handle = self._running()
            for queue, page in enumerate(pages):
                lib.fp_datapath_stats(handle, queue, page)
        return pages


def _start(settings: DatapathSettings, tun: TunQueues, underlay: UnderlaySockets, tuning: Tuning) -> Any:
    pairs = queue_descriptors(settings, tun, underlay)
    queues = ffi.new("struct fp_queue[]", [(tun_fd, len(lanes), lanes) for tun_fd, lanes in pairs])
    out = ffi.new("struct fp_datapath **")
    error = lib.fp_datapath_start(queues, settings.queues, native_settings(settings, tun, underlay, tuning), out)
    if error:
        raise DatapathError(f"{settings.device}: the workers cannot start: {os.strerror(-error)}")
    return out[0]


def queue_descriptors(settings: DatapathSettings, tun: TunQueues, underlay: UnderlaySockets) -> list[tuple[int, tuple[int, ...]]]:
    """Of each queue the TUN descriptor and the lanes'. Raises DatapathError when they are not as many as the queues need."""
    queues, sockets = settings.queues, len(underlay.fds)
    if len(tun.fds) != queues or sockets < queues or sockets % queues:
        raise DatapathError(
            f"{settings.device}: {queues} queues need as many of TUN ({len(tun.fds)}) and as many or more UDP sockets ({sockets})"
        )
    return list(zip(tun.fds, underlay.lanes(queues), strict=True))


def native_settings(settings: DatapathSettings, tun: TunQueues, underlay: UnderlaySockets, tuning: Tuning) -> Any:
    """``struct fp_settings *``."""
    options = (
        (lib.FP_OPT_SOURCE_CHECK if settings.source_check else 0)
        | (lib.FP_OPT_USO if "uso" in tun.features else 0)
        | (0 if "coalesce" in tun.features else lib.FP_OPT_NO_COALESCE)
    )
    return ffi.new(
        "struct fp_settings *",
        {
            "options": options,
            "tunnel_address": int(settings.tunnel_address or 0),
            "tunnel_address6": {"bytes": settings.tunnel_address6.packed if settings.tunnel_address6 else bytes(16)},
            "max_segments": underlay.max_segments,
            "spin_us": settings.spin_us,
            "icmp_per_second": tuning.icmp_per_second,
            "threads_per_queue": tuning.threads_per_queue,
            "gso_retry_ms": round(tuning.gso_retry_s * 1000),
        },
    )
