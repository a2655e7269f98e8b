"""The C parts of the suite as typed Python: sending, receiving and asking probes, and the one-packet-per-call proxy.

The only module that imports ``flanpy.bench._native``. Calls block for the bounded time that their argument says and release the
interpreter lock. Sockets come from the caller, opened in the namespace that the traffic is meant for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flanpy.bench._native import ffi, lib

NS = 1_000_000_000
PROBE_BYTES: int = lib.FB_PROBE_BYTES
"""Least payload: magic, flow, sequence number and send time."""
TRAIN_MAX: int = lib.FB_TRAIN_MAX
"""Most packets in one send."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Nanosecond values: ``buckets`` holds (least value of the bucket, count) of each bucket that is not empty."""

    count: int
    min_ns: int
    max_ns: int
    sum_ns: int
    buckets: tuple[tuple[int, int], ...]

    def quantile_ns(self, share: float) -> int:
        """The value that ``share`` (0..1) of all values lie below, right to 3 %; 0 when there are none."""
        wanted, seen = int(self.count * share), 0
        for floor_ns, count in self.buckets:
            seen += count
            if seen > wanted:
                return floor_ns
        return self.max_ns


@dataclass(frozen=True, slots=True)
class Sent:
    """What the generator really did; its rate is ``packets / elapsed_s``, whatever was asked for."""

    packets: int
    sends: int
    refused: int
    slipped: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """What arrived, each packet counted once: ``packets`` are different ones."""

    packets: int
    duplicates: int
    reordered: int
    foreign: int
    bytes: int
    receives: int
    span_s: float
    delay: Histogram


@dataclass(frozen=True, slots=True)
class Answers:
    """Round trips of the requests that were answered in time."""

    requests: int
    lost: int
    round_trip: Histogram


@dataclass(frozen=True, slots=True)
class ProxyRoute:
    """One line of the proxy's list; the first that fits is taken."""

    network: IPv4Network
    hop: IPv4Address
    port: int


def _checked(result: int, doing: str) -> None:
    if result < 0:
        raise OSError(-result, f"{doing}: {os.strerror(-result)}")


def _histogram(value: Any) -> Histogram:
    counts = ffi.unpack(value.buckets, lib.FB_BUCKETS)
    buckets = tuple((int(lib.fb_histogram_floor(i)), count) for i, count in enumerate(counts) if count)
    return Histogram(value.count, value.min_ns, value.max_ns, value.sum_ns, buckets)


def generate(
    sockets: Sequence[socket.socket], *, magic: int, payload_bytes: int, train: int, rate_pps: int, seconds: float, packets: int
) -> Sent:
    """Send probes from these connected sockets in turn; ``rate_pps`` 0 sends flat out. Ends by time or by count."""
    what = ffi.new("struct fb_generate *")
    what.magic, what.payload_bytes, what.train = magic, payload_bytes, train
    what.rate_pps, what.duration_ns, what.packets = rate_pps, int(seconds * NS), packets
    out = ffi.new("struct fb_sent *")
    descriptors = ffi.new("int[]", [each.fileno() for each in sockets])
    _checked(lib.fb_generate(descriptors, len(sockets), what, out), f"sending {payload_bytes} B probes")
    return Sent(out.packets, out.sends, out.refused, out.slipped, out.elapsed_ns / NS)


def prepare_receiver(receiver: socket.socket, buffer_bytes: int) -> None:
    """Ask for GRO trains, receive stamps and a large buffer; before the first packet is sent."""
    _checked(lib.fb_receive_prepare(receiver.fileno(), buffer_bytes), "preparing the receiving socket")


def receive(
    receiver: socket.socket, stop: int, *, magic: int, flows: int, flow_packets: int, quiet_s: float, deadline_s: float
) -> Received:
    """Count probes until ``stop`` is readable and then nothing has come for ``quiet_s``, at most ``deadline_s`` in all."""
    what = ffi.new("struct fb_receive *")
    what.magic, what.flows, what.flow_packets = magic, flows, flow_packets
    what.quiet_ns, what.deadline_ns = int(quiet_s * NS), int(deadline_s * NS)
    out = ffi.new("struct fb_received *")
    _checked(lib.fb_receive(receiver.fileno(), stop, what, out), "receiving probes")
    span_s = (out.last_ns - out.first_ns) / NS
    return Received(
        out.packets, out.duplicates, out.reordered, out.foreign, out.bytes, out.receives, span_s, _histogram(out.delay)
    )


def ask(
    asker: socket.socket, *, payload_bytes: int, interval_s: float, timeout_s: float, seconds: float, requests: int
) -> Answers:
    """Ask from a connected socket, one request at a time; ends by time or by count."""
    what = ffi.new("struct fb_ask *")
    what.payload_bytes, what.requests = payload_bytes, requests
    what.interval_ns, what.timeout_ns, what.duration_ns = int(interval_s * NS), int(timeout_s * NS), int(seconds * NS)
    out = ffi.new("struct fb_answers *")
    _checked(lib.fb_ask(asker.fileno(), what, out), "asking")
    return Answers(out.requests, out.lost, _histogram(out.round_trip))


def answer(answerer: socket.socket, stop: int, deadline_s: float) -> None:
    """Send every datagram back until the descriptor ``stop`` is readable."""
    _checked(lib.fb_answer(answerer.fileno(), stop, int(deadline_s * NS)), "answering")


def proxy(tun: int, udp: socket.socket, stop: int, routes: Sequence[ProxyRoute], mtu_bytes: int) -> dict[str, int]:
    """Carry packets one a system call until the descriptor ``stop`` is readable; returns the counters."""
    lines = ffi.new("struct fb_proxy_route[]", len(routes))
    for line, route in zip(lines, routes, strict=True):
        line.network_be = _in_memory(route.network.network_address.packed)
        line.mask_be = _in_memory(route.network.netmask.packed)
        line.hop_be = _in_memory(route.hop.packed)
        line.port_be = socket.htons(route.port)
    counts = ffi.new("struct fb_proxy_counts *")
    _checked(lib.fb_proxy(tun, udp.fileno(), stop, lines, len(routes), mtu_bytes, counts), "carrying packets")
    return {name: getattr(counts, name) for name in ("tun_packets", "udp_packets", "no_route", "expired", "refused")}


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Time that a function of the core took for a batch of packets: the median of many batches."""

    packets: int
    bytes: int
    ns: float
    ticks: int

    @property
    def ns_a_packet(self) -> float:
        """Nanoseconds a packet."""
        return self.ns / self.packets

    @property
    def bytes_a_tick(self) -> float | None:
        """Bytes for each cycle of the time stamp counter, where there is one."""
        return self.bytes / self.ticks if self.ticks else None


def time_core(
    operation: str,
    *,
    naive: bool,
    packet_bytes: int,
    routes: int,
    repeated: bool = False,
    alone: bool = False,
    seed: int,
    seconds: float,
) -> CoreTime:
    """Repeat an operation of the core (``LOOKUP``, ``SUM``, ... of ``enum fb_operation``) or its plain version."""
    what = ffi.new("struct fb_core *")
    what.operation, what.naive = getattr(lib, f"FB_{operation}"), naive
    what.packet_bytes, what.routes, what.repeated, what.alone = packet_bytes, routes, repeated, alone
    what.seed, what.duration_ns = seed, int(seconds * NS)
    out = ffi.new("struct fb_core_time *")
    _checked(lib.fb_core_run(what, out), f"timing {operation} of the core with {packet_bytes} B and {routes} routes")
    return CoreTime(out.packets, out.bytes, out.ns, out.ticks)


def core_cpu() -> str:
    """Which implementation of the checksum the core chose for this CPU."""
    return str(ffi.string(lib.fb_core_cpu()).decode())


def _in_memory(packed: bytes) -> int:
    """Four bytes of a packet as the integer that a C program sees when it loads them."""
    return int(ffi.cast("uint32_t *", ffi.from_buffer(packed))[0])
