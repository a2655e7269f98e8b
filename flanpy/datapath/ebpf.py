"""The ebpf datapath: BPF programs carry the packets; the userspace datapath beside them takes what they leave to it.

    publish   table -> userspace workers, then -> one snapshot for the programs, seen by every packet from then on
    stats     verdicts of both added up: each packet meets its verdict in exactly one of them
    close     programs, maps, device and the userspace half's process stay and carry on (``teardown`` removes them)

Programs are attached with the first table, so that they never meet an empty one; a new process adopts maps and programs that an
earlier one has pinned, and replaces programs in their place when its own differ.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from flanpy.datapath import Datapath, DatapathSettings, DatapathStats, PeerCount, ProcessStatus, VerdictCount
from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.core import VERDICTS
from flanpy.datapath.ebpf_attach import Sight, Spot, TcHooks, TcxHooks, has_tcx
from flanpy.datapath.ebpf_host import Host
from flanpy.datapath.ebpf_layout import COUNTERS_BYTES, Header, build_snapshot, sum_counters, sum_of
from flanpy.datapath.ebpf_mtu import PathMtus
from flanpy.datapath.ebpf_needs import degraded, may_send_raw, require_ethernet
from flanpy.datapath.ebpf_peers import PeerCounters, both
from flanpy.datapath.ebpf_pins import READ_ONLY, ROOT, Pins, sweep_dead
from flanpy.datapath.ebpf_places import put_in_place
from flanpy.datapath.ebpf_prober import Notes, SuperpacketProber, Watch, forget, targets_of
from flanpy.datapath.ebpf_programs import Loaded, load, publish
from flanpy.errors import DatapathError, DatapathWaits, PlatformError, reason_of
from flanpy.model import Address, ForwardTable

FEATURES = frozenset({"ecn", "superpacket"})
"""What our receiver can take: marks are combined, superpackets and unfinished checksums are taken as they are."""

BULK = tuple(
    f"bpf_{name}" for name in ("superpackets_out", "superpackets_in", "inner_gro", "up_udp_train", "up_tcp_train", "up_socket")
)
"""Counters that grow fast with bulk traffic, and not with probes."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EbpfOptions:
    """What the programs need to know besides the settings. ``bypass`` skips the host's forwarding; docs/ebpf.md says what that costs."""

    underlay: str
    bypass: bool = False
    inner_gro: bool = True
    pin_root: Path = ROOT
    hooks: str = "auto"
    """``tcx``, ``clsact``, or ``auto``: tcx where the kernel has it."""


class EbpfDatapath:
    """A running ebpf datapath. It owns the userspace datapath that is handed in and closes it, also when it cannot start."""

    kind = "ebpf"

    def __init__(self, settings: DatapathSettings, options: EbpfOptions, userspace: Datapath, host: Host) -> None:
        self.features = FEATURES | userspace.features
        self._settings = settings
        self._options = options
        self._userspace = userspace
        self._host = host
        self._lock = threading.Lock()
        self._table: ForwardTable | None = None
        self._header: Header | None = None
        self._spots: tuple[Spot, ...] = ()
        self._seen: Sight | None = None
        """How directory and hooks looked when all hung in its place; None: that is not known."""
        self._counted = b"", 0
        """What was counted at the prober's last turn, and the sum of BULK in it."""
        self._repairs = 0
        self._mtus = PathMtus(settings.underlay_address)
        self._pins = Pins.of(settings.device, options.pin_root)
        self._loaded: Loaded | None = None
        self._peers: PeerCounters | None = None
        self._prober: SuperpacketProber | None = None
        self._can_probe = may_send_raw()
        self._lacks = tuple(degraded(options.underlay, settings.underlay_address, can_probe=self._can_probe))
        try:
            self._pins.hold()
            sweep_dead(options.pin_root)
            require_ethernet(options.underlay)
            self._loaded = load(self._pins)
            self._counters = bpf.Reading(self._loaded.maps["fp_counters"], 0, COUNTERS_BYTES * possible_cpus())
            self._peers = self._explain(
                "counters of peers", partial(PeerCounters, self._loaded.maps["fp_peers"], possible_cpus())
            )
            tcx = options.hooks == "tcx" or (options.hooks == "auto" and has_tcx(self._loaded.programs["fp_encap"]))
            self._hooks: TcHooks = TcxHooks(self._pins) if tcx else host.clsact_hooks()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def process(self) -> ProcessStatus | None:
        """The process of the userspace half."""
        return self._userspace.process

    @property
    def degraded(self) -> tuple[str, ...]:
        """What both halves do without, and a bpffs that keeps what hangs there from being put back if somebody removes it."""
        kept = (f"{READ_ONLY}; until then nothing can be put back or replaced",) if self._pins.is_read_only else ()
        return (*self._userspace.degraded, *self._lacks, *kept)

    @property
    def adopted(self) -> bool:
        """Whether the maps of an earlier process, with its routes and counters, are in use."""
        return self._running().adopted

    @property
    def hooks(self) -> str:
        """``tcx`` or ``clsact``."""
        return self._hooks.name

    def publish(self, table: ForwardTable) -> None:
        """Forward by this table from now on: userspace first, so that what the programs leave to it finds its way."""
        self._userspace.publish(table)
        with self._lock:
            header, spots = self._survey(table)
            self._mtus.of_table(table, header.outer_bytes)
            self._publish(table, header)
            self._have_counters(table)
            self._attach(spots)
            self._table, self._header = table, header
            self._probe(table, header)

    def stats(self) -> DatapathStats:
        """Counters of both halves together."""
        below = self._userspace.stats()
        verdicts, others = self._own_counters()
        for name, count in below.verdicts.items():
            mine = verdicts[name]
            verdicts[name] = VerdictCount(mine.packets + count.packets, mine.bytes + count.bytes)
        return replace(below, verdicts=verdicts, counters={**below.counters, **others, "bpf_repairs": self._repairs})

    def peer_counts(self, peers: Sequence[Address]) -> Mapping[Address, PeerCount]:
        """What each of these peers was sent and has sent, by both halves."""
        below = self._userspace.peer_counts(peers)
        with self._lock:
            return both(below, self._peers.read(peers)) if self._peers is not None else below

    def check(self, *, closely: bool = True) -> None:
        """Put back what somebody has removed; raise DatapathError when that, or the userspace half, cannot go on.

        DatapathWaits: something is missing that cannot be put back while bpffs is read-only; all else goes on. Not ``closely``: devices
        are taken to be as they were, and programs and names too unless their hooks or their directory have changed since.
        """
        self._userspace.check(closely=closely)
        with self._lock:
            if self._table is None or self._header is None:
                return
            if not closely and self._is_untouched():
                self._follow_underlay(self._table, self._header)
                return
            header, spots = self._survey(self._table)
            if self._mtus.look(header.outer_bytes) or header != self._header:
                self._publish(self._table, header)
                self._header = header
            self._repairs += self._attach(spots)

    def close(self) -> None:
        """Let go of the userspace half and of the programs, which carry on by their pins; safe to call twice."""
        self._userspace.close()
        with self._lock:
            prober, self._prober = self._prober, None
        if prober is not None:
            prober.close()  # not under the lock: its thread may be waiting for it
        with self._lock:
            loaded, self._loaded, self._peers = self._loaded, None, None
            if loaded is not None:
                loaded.close()
            self._mtus.close()
            self._pins.release()

    def teardown(self) -> None:
        """Close, end the userspace half, and remove programs, maps, pins and devices. Raises DatapathWaits: none of it can be now."""
        self._pins.require_removable()
        with self._lock:
            self._hooks.sweep(())
        self._userspace.teardown()
        self.close()
        self._pins.clear()
        self._host.remove_merging_device(self._settings.device)
        self._host.remove_tunnel(self._settings.device)

    def _running(self) -> Loaded:
        if self._loaded is None:
            raise DatapathError(f"{self._settings.device}: the datapath is closed")
        return self._loaded

    def _survey(self, table: ForwardTable) -> tuple[Header, tuple[Spot, ...]]:
        """What the programs work by on this machine as it is now, and where they belong."""
        settings, options = self._settings, self._options
        underlay = _index(options.underlay)  # first: it says so when the uplink has gone or has another name
        whole, trains = self._host.offloads(options.underlay)
        near, far = self._host.merging_device(settings.device) if options.inner_gro else (0, 0)
        header = Header(
            device=_index(settings.device),
            underlay=underlay,
            address=settings.underlay_address,
            port=settings.port,
            mtu_bytes=table.mtu_bytes,
            source_check=settings.source_check,
            carries=self._host.carries_superpackets(options.underlay),
            whole=whole,
            trains=trains,
            bridge=self._host.pod_bridge(table.local, settings.device) if options.bypass else 0,
            gro=near,
        )
        return header, _spots(header, far)

    def _probe(self, table: ForwardTable, header: Header) -> None:
        """Let the prober know the peers that run these programs too."""
        settings = self._settings
        sources = tuple(each for each in (settings.tunnel_address, settings.tunnel_address6) if each is not None)
        targets = targets_of(table, tuple(source.version for source in sources))
        if self._prober is None and targets and self._can_probe:
            maps = self._running().maps
            notes, six = Notes(maps["fp_wholes"], maps["fp_thanks"]), settings.underlay_address.version == 6
            watch = Watch(self._bulk, self._watch_offloads)
            start = partial(SuperpacketProber, settings.device, sources, notes, watch, only_probes_tell=six)
            self._prober = self._explain("probes of the paths", start)
        if self._prober is not None:
            self._prober.aim(targets, table.mtu_bytes, whole=header.carries)

    def _bulk(self) -> int:
        """By the prober's thread: a number that grows while bulk traffic flows, in or out."""
        try:
            found = self._counters.read()
        except OSError:
            return self._counted[1]
        if found != self._counted[0]:
            self._counted = found, sum_of(found, BULK)
        return self._counted[1]

    def _own_counters(self) -> tuple[dict[str, VerdictCount], dict[str, int]]:
        """What the programs have counted, all CPUs together."""
        return sum_counters(bpf.lookup(self._running().maps["fp_counters"], 0, COUNTERS_BYTES * possible_cpus()), VERDICTS)

    def _have_counters(self, table: ForwardTable) -> None:
        """After the table is in force: a peer that has just come may send a packet or two that its figures lack."""
        if self._peers is not None:
            self._peers.have({id(entry.hop): entry.hop.address for entry in table.entries}.values())

    def _watch_offloads(self) -> None:
        """Somebody may switch the uplink's offloads, and flat superpackets cannot be cut."""
        with suppress(OSError, DatapathError), self._lock:  # gone or closed: check() and close() have the last word
            if self._table is not None and self._header is not None:
                self._follow_offloads(self._table, self._header)

    def _follow_offloads(self, table: ForwardTable, header: Header) -> None:
        whole, trains = self._host.offloads(self._options.underlay)
        if (whole, trains) != (header.whole, header.trains):
            self._publish(table, replace(header, whole=whole, trains=trains))
            self._header = replace(header, whole=whole, trains=trains)
        if self._prober is not None:
            self._prober.trains = trains

    def _is_untouched(self) -> bool:
        """Whether nothing has happened to what hangs and is pinned since it was all in its place."""
        with suppress(OSError):  # a device is gone, say
            return self._seen is not None and self._seen == self._sight(self._spots)
        return False

    def _sight(self, spots: tuple[Spot, ...]) -> Sight:
        return self._pins.changed(), self._hooks.look(spots)

    def _follow_underlay(self, table: ForwardTable, header: Header) -> None:
        """What the monitor does not hear of: offloads, and how large a packet to a peer may be."""
        if self._prober is None:  # else it looks, twice a second or more
            with suppress(OSError):  # the uplink is gone, which a close look finds
                self._follow_offloads(table, header)
            header = self._header or header
        if self._mtus.look(header.outer_bytes):
            self._publish(table, header)

    def _publish(self, table: ForwardTable, header: Header) -> None:
        maps, before = self._running().maps, self._header

        def change() -> None:
            publish(maps, build_snapshot(table, header, self._mtus.narrow))
            if before is not None and (before.whole, before.trains) != (header.whole, header.trains):
                forget((maps["fp_wholes"], maps["fp_thanks"]), table)

        self._explain(f"table {table.generation}", change)

    def _attach(self, spots: tuple[Spot, ...]) -> int:
        """Every program hangs in its place; how many had to be put there."""
        before = self._seen = None
        with suppress(OSError):  # looked at first: what happens meanwhile is seen the next time
            before = self._sight(spots)
        place = partial(put_in_place, self._running(), spots, self._pins, self._hooks)
        self._loaded, done = self._explain("attach", place)
        self._spots, self._seen = spots, before if not done else None
        return done

    def _explain(self, what: str, do: Callable[[], Result]) -> Result:
        try:
            return do()
        except OSError as error:
            problem = f"{self._settings.device}: ebpf: {what}: {reason_of(error)}"
            if error.errno == errno.EROFS:
                raise DatapathWaits(f"{problem}; {READ_ONLY}") from error
            raise DatapathError(problem) from error


def _spots(header: Header, merged: int) -> tuple[Spot, ...]:
    """Where the programs belong; ``merged``: the interface at which what went into ``header.gro`` comes out."""
    spots = [Spot("fp_encap", header.device, egress=True), Spot("fp_decap", header.underlay)]
    if header.gro:
        spots.append(Spot("fp_merged", merged))
    if header.bridge:
        spots.append(Spot("fp_bypass", header.bridge))
    return tuple(spots)


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise DatapathError(f"{device}: there is no such interface any more") from error


@cache
def possible_cpus() -> int:
    """CPUs that could be plugged in: as many values a per-CPU map has. Read once, for later there may be no descriptor to read it with."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return sum(
        int(last or first) - int(first) + 1 for first, _, last in (part.partition("-") for part in text.strip().split(","))
    )


def cleanup(device: str, host: Host, root: Path = ROOT) -> bool:
    """Remove what any earlier process has left for this device; whether there was anything. Raises DatapathWaits: it cannot be now.

    Filters first, by their names: they live without pins, and would send packets to a device that is gone."""
    pins, swept = Pins.of(device, root), False
    pins.require_removable()
    with suppress(PlatformError):  # a kernel without traffic control has no filters
        swept = host.clsact_hooks().sweep(())
    removed = pins.clear() or swept
    if removed:
        host.remove_merging_device(device)
        host.remove_tunnel(device)
    return removed
