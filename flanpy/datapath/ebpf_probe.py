"""Whether the ebpf datapath can run here: one probe a need, each with its outcome, the reason and the cure.

The probes try what they ask about, on objects of their own that are gone afterwards; nothing is attached and no pin is made. The
last one sends a packet through the loaded programs and back, by the kernel's test run, and compares every byte.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf_attach import has_tcx
from flanpy.datapath.ebpf_layout import Header, build_snapshot
from flanpy.datapath.ebpf_needs import require_ethernet
from flanpy.datapath.ebpf_pins import BPFFS, Pins, is_bpffs, is_read_only
from flanpy.datapath.ebpf_programs import Loaded, load, publish, read_object
from flanpy.errors import DatapathError, PlatformError
from flanpy.model import ForwardTable, Hop, TableEntry

OLDEST = (5, 15)
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_NET_ADMIN, _NET_RAW, _SYS_ADMIN, _PERFMON, _BPF = (1 << number for number in _CAPABILITIES.values())
_REDIRECT = 7


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe has found; ``cure`` is empty when nothing is wrong, ``log`` holds a verifier's words."""

    name: str
    ok: bool
    reason: str
    cure: str = ""
    log: str = ""


Way = tuple[int, int]
"""IP versions of an inner packet and of the underlay that carries it."""


def probe_all(underlay: str | None = None, *, needed: frozenset[Way] = frozenset()) -> tuple[Probe, ...]:
    """Every probe, in the order in which they build on each other; those that cannot be tried any more say so.

    ``underlay`` is the interface that would carry the packets; without it no probe tells whether that fits.
    ``needed``: what the cluster has to carry; of other packets it is only told whether they could be."""
    found = [_object(), _kernel(), _capabilities(), _bpffs()]
    if underlay is not None:
        found.append(_underlay(underlay))
    with _loading() as (outcome, loaded):
        found.append(outcome)
        if loaded is None:
            later = "not tried: the programs are not loaded"
            return (
                *found,
                *(Probe(name, False, later, "see programs") for name in ("hook", "self-test", "ipv6", "ipv6-underlay")),
            )
        found.append(_hook(loaded))
        found.append(self_test(loaded))
        found.append(_ways(loaded, "ipv6", ((6, 4),), needed))
        found.append(_ways(loaded, "ipv6-underlay", ((4, 6), (6, 6)), needed))
    return tuple(found)


def first_problem(probes: tuple[Probe, ...]) -> str | None:
    """Why ebpf cannot run, in one line with the cure, or None when it can."""
    return next((f"{probe.name}: {probe.reason}; {probe.cure}" for probe in probes if not probe.ok), None)


def _object() -> Probe:
    try:
        parsed = read_object()
    except PlatformError as error:
        return Probe(
            "object",
            False,
            str(error),
            "build it with clang installed (Debian: apt-get install clang)",
        )
    return Probe("object", True, f"{len(parsed.programs)} programs and {len(parsed.maps)} maps in this build")


def _kernel() -> Probe:
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        return Probe("kernel", False, f"Linux {release}", f"Linux {OLDEST[0]}.{OLDEST[1]} or newer, or --datapath userspace")
    return Probe("kernel", True, f"Linux {release} on {platform.machine()}")


def _effective() -> int:
    text = Path("/proc/thread-self/status").read_text(encoding="ascii")
    return int(re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)[1], 16)  # type: ignore[index]


def _capabilities() -> Probe:
    effective = _effective()
    needed = {"CAP_NET_ADMIN": _NET_ADMIN, "CAP_BPF": _BPF | _SYS_ADMIN, "CAP_PERFMON": _PERFMON | _SYS_ADMIN}
    missing = [name for name, any_of in needed.items() if not effective & any_of]
    if missing:
        return Probe(
            "capabilities",
            False,
            f"{', '.join(missing)} not held",
            "run as root, or systemd: AmbientCapabilities=" + " ".join([*needed, "CAP_NET_RAW"]),
        )
    if not effective & _NET_RAW:
        return Probe(
            "capabilities",
            True,
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held; CAP_NET_RAW, recommended to probe paths, is not",
        )
    return Probe("capabilities", True, "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held")


def _bpffs() -> Probe:
    if not is_bpffs(BPFFS):
        if BPFFS.is_dir() and _effective() & _SYS_ADMIN:
            return Probe(
                "bpffs", True, f"not mounted at {BPFFS} yet: the agent does that as it starts (mount -t bpf bpf {BPFFS})"
            )
        return Probe("bpffs", False, f"not mounted at {BPFFS}, and this process may not", f"mount -t bpf bpf {BPFFS} as root")
    if is_read_only(BPFFS):
        return Probe("bpffs", False, f"{BPFFS} is read-only", f"mount -o remount,rw {BPFFS}")
    if not os.access(BPFFS, os.W_OK):
        return Probe("bpffs", False, f"{BPFFS} cannot be written", "give the agent's user the directory, or run as root")
    return Probe("bpffs", True, f"mounted at {BPFFS}: programs and maps outlive the agent")


def _underlay(device: str) -> Probe:
    try:
        require_ethernet(device)
    except (DatapathError, PlatformError) as error:
        return Probe(
            "underlay", False, str(error), "--iface with an interface that has Ethernet headers, or --datapath userspace"
        )
    return Probe("underlay", True, f"{device} has Ethernet headers")


@contextmanager
def _loading() -> Iterator[tuple[Probe, Loaded | None]]:
    """The programs, loaded with maps of their own for the length of the block."""
    try:
        loaded = load(Pins(BPFFS / "flanpy-no-such-directory"))
    except (DatapathError, PlatformError) as error:
        cure = "--datapath userspace, and a report with this log" if getattr(error, "__notes__", None) else "see the other probes"
        yield Probe("programs", False, str(error), cure, "\n".join(getattr(error, "__notes__", []))), None
        return
    try:
        yield Probe("programs", True, "the verifier takes all of them"), loaded
    finally:
        loaded.close()


def _hook(loaded: Loaded) -> Probe:
    if has_tcx(loaded.programs["fp_encap"]):
        return Probe("hook", True, "tcx links")
    return Probe("hook", True, "filters of a clsact qdisc (tcx came with Linux 6.6)")


def self_test(loaded: Loaded) -> Probe:
    """Send a packet out and in again, and compare: only the two hops may show in it."""
    if problem := _round_trip(loaded, (4, 4)):
        cure = "--datapath userspace, and a report: the programs do not work on this kernel as they should"
        return Probe("self-test", False, problem, cure)
    return Probe("self-test", True, "a packet went out and came back as it should")


def _ways(loaded: Loaded, name: str, ways: tuple[Way, ...], needed: frozenset[Way]) -> Probe:
    """The same where IPv6 is in it. Older kernels take no header of one family off a packet of the other (bpf_skb_adjust_room)."""
    problems = {way: problem for way in ways if (problem := _round_trip(loaded, way)) is not None}
    missing = next((problem for way, problem in problems.items() if way in needed), None)
    if missing is not None:
        return Probe(name, False, missing, "Linux 6.3 or newer, or --datapath userspace")
    if not problems:
        return Probe(name, True, ", ".join(f"IPv{inner} over IPv{outer}" for inner, outer in ways) + ": went out and came back")
    lacking = ", ".join(f"IPv{inner} over IPv{outer}" for inner, outer in problems)
    return Probe(name, True, f"not on this kernel (it needs Linux 6.3): {lacking}; a cluster that needs it takes userspace here")


def _round_trip(loaded: Loaded, way: Way) -> str | None:
    """What went wrong with a packet of this way, or None."""
    inner, outer = way
    packet, name = _packet if inner == 4 else _packet6, f"IPv{inner} over IPv{outer}"
    sent = _ethernet(packet(64))
    udp_at = 14 + (20 if outer == 4 else 40)
    try:
        publish(loaded.maps, build_snapshot(*_both_ends(1, 2, outer)))
        verdict, wire = bpf.test_run(loaded.programs["fp_bypass"], sent)
        udp = struct.pack("!HHHH", 8285, 8285, 8 + len(sent) - 14, 0)
        if verdict != _REDIRECT or wire[udp_at : udp_at + 15] != udp + sent[14:21]:
            return f"encapsulation of {name} gave {verdict} and {wire.hex()}"
        publish(loaded.maps, build_snapshot(*_both_ends(2, 1, outer)))
        verdict, back = bpf.test_run(
            loaded.programs["fp_decap"], _ethernet(wire[14:])
        )  # the link header is the neighbour's to write
    except OSError as error:
        return f"the kernel does not run programs for a test: {error.strerror}"
    if verdict != _REDIRECT or back[12:] != _ethernet(packet(62))[12:]:
        return f"decapsulation of {name} gave {verdict} and {back.hex()}"
    return None


def _both_ends(own: int, peer: int, outer: int) -> tuple[ForwardTable, Header]:
    ours, theirs = (ip_address(f"192.0.2.{end}" if outer == 4 else f"2001:db8::{end}") for end in (own, peer))
    hop = Hop(theirs, 8285, superpacket=True)
    entries = (TableEntry(IPv4Network(f"198.18.{peer}.0/24"), hop), TableEntry(IPv6Network(f"2001:2:0:{peer}::/64"), hop))
    table = ForwardTable(1, entries, (IPv4Network(f"198.18.{own}.0/24"), IPv6Network(f"2001:2:0:{own}::/64")))
    return table, Header(1, 1, ours, 8285, 1400, carries=False, self_test=True)


def _packet(ttl: int) -> bytes:
    source, destination = IPv4Address("198.18.1.1").packed, IPv4Address("198.18.2.1").packed
    payload = struct.pack("!HHHH", 9, 9, 16, 0) + b"flanpy!\n"
    fields = (0x45, 0, 20 + len(payload), 7, 0x4000, ttl, 17)
    words = struct.unpack("!10H", struct.pack("!BBHHHBBH4s4s", *fields, 0, source, destination))
    total = sum(words)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHHBBH4s4s", *fields, check, source, destination) + payload


def _packet6(ttl: int) -> bytes:
    payload = struct.pack("!HHHH", 9, 9, 16, 0) + b"flanpy!\n"
    ends = IPv6Address("2001:2:0:1::1").packed + IPv6Address("2001:2:0:2::1").packed
    return struct.pack("!IHBB", 0x60000000, len(payload), 17, ttl) + ends + payload


def _ethernet(packet: bytes) -> bytes:
    return bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet
