"""``flanpy bench core``: nanoseconds a packet and bytes a cycle of the pure C functions, beside the plain version of each.

The loops are in C (csrc/bench/core.c); here is only which cases there are. Figures of setup ``flanpy`` and ``naive``, no mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flanpy.bench.native import core_cpu, time_core
from flanpy.bench.runner import Progress, Recorder
from flanpy.bench.samples import NO_MODE, Figure, Settings
from flanpy.bench.tasks import Value

SIZES = (64, 1400)
ROUTES = (1, 256, 65536)
CASE_S = 0.03
"""Time of a case, preparation included; rounds repeat it."""
ROUNDS_FACTOR = 3
"""A round of beds takes minutes, one of these a second: so many more of them."""
TICKS = "cycles of the time stamp counter (constant rate, whatever the core's clock does)"


@dataclass(frozen=True, slots=True)
class Case:
    """One function with its circumstances."""

    key: str
    title: str
    operation: str
    packet_bytes: int
    routes: int = 1
    repeated: bool = False
    alone: bool = False
    """Each packet is a batch of its own."""


def cases() -> Iterator[Case]:
    """Every case, in the order of the report."""
    for routes in ROUTES:
        for pattern in ("random", "repeated"):
            title = f"lookup, {routes:,} routes, {pattern}"
            yield Case(f"core_lookup_{routes}_{pattern}", title, "LOOKUP", 64, routes, pattern == "repeated")
    for size in SIZES:
        yield Case(f"core_checksum_{size}", f"checksum, {size:,} B", "SUM", size)
        yield Case(f"core_copy_checksum_{size}", f"copy and checksum, {size:,} B", "COPY_SUM", size)
        yield Case(f"core_segment_{size}", f"segmentation of a TCP superpacket into 46 of {size:,} B", "SEGMENT", size)
        yield Case(f"core_coalesce_{size}", f"coalescing of 46 TCP packets of {size:,} B", "COALESCE", size)
        for routes in ROUTES:
            title = f"UDP packets of {size:,} B, {routes:,} routes"
            yield Case(f"core_encap_{size}_routes_{routes}", f"encap of {title}", "ENCAP", size, routes)
            yield Case(f"core_decap_{size}_routes_{routes}", f"decap of {title}", "DECAP", size, routes)
    for routes in ROUTES:
        title = f"UDP packets of {SIZES[0]} B, each a batch, {routes:,} routes"
        yield Case(f"core_encap_alone_routes_{routes}", f"encap of {title}", "ENCAP", SIZES[0], routes, alone=True)
        yield Case(f"core_decap_alone_routes_{routes}", f"decap of {title}", "DECAP", SIZES[0], routes, alone=True)


def figures() -> tuple[Figure, ...]:
    """Time of every case, and bytes a cycle where bytes matter."""
    found = []
    for case in cases():
        found.append(Figure(case.key, f"core: {case.title}", "ns/packet", higher_is_better=False))
        if case.operation != "LOOKUP":
            found.append(Figure(f"{case.key}_bytes", f"core: {case.title}", "bytes/cycle"))
    return tuple(found)


def rounds(settings: Settings) -> int:
    """How often each case is timed."""
    return settings.rounds * ROUNDS_FACTOR


def steps(settings: Settings) -> int:
    """Steps of the progress display."""
    return rounds(settings)


def run_core(settings: Settings, recorder: Recorder, progress: Progress) -> None:
    """Time every case and its plain version, in turn, round by round."""
    recorder.note("core_checksum", core_cpu())
    recorder.note("core_cycles", TICKS)
    for number in range(rounds(settings)):
        progress.step(f"round {number + 1}/{rounds(settings)}  core")
        for case in cases():
            for setup in ("flanpy", "naive"):
                for value in _time(case, setup == "naive", seed=number + 1):
                    recorder.add(value, setup, NO_MODE, number)


def _time(case: Case, naive: bool, seed: int) -> Iterator[Value]:
    time = time_core(
        case.operation,
        naive=naive,
        packet_bytes=case.packet_bytes,
        routes=case.routes,
        repeated=case.repeated,
        alone=case.alone,
        seed=seed,
        seconds=CASE_S,
    )
    yield Value(case.key, time.ns_a_packet)
    if case.operation != "LOOKUP" and time.bytes_a_tick is not None:
        yield Value(f"{case.key}_bytes", time.bytes_a_tick)
