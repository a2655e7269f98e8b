"""The bytes that Python writes for the BPF programs, against the header that they are compiled with and against a slow lookup."""

import re
import shutil
import struct
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanpy.datapath import ebpf_layout as layout
from flanpy.datapath import ebpf_programs
from flanpy.datapath.bpf_build import compile_object
from flanpy.datapath.ebpf_layout import LAYOUT, Header, build_snapshot, peer_key, sum_counters
from flanpy.datapath.ebpf_object import parse_object
from flanpy.errors import DatapathError, PlatformError
from flanpy.model import ForwardTable, Hop, TableEntry

ROOT = Path(__file__).resolve().parents[2]
LAYOUT_H = ROOT / "csrc/bpf/layout.h"
HEADER = Header(3, 2, IPv4Address("172.31.0.1"), 8285, 1472)
HOPS = [Hop(IPv4Address(f"172.31.0.{n}"), 8285, ecn=bool(n & 1), superpacket=bool(n & 2)) for n in range(2, 6)]


def word(snapshot: bytes, chunk: int, index: int) -> int:
    found: int = struct.unpack_from("=I", snapshot, chunk * layout.CHUNK_BYTES + 4 * index)[0]
    return found


def lookup(snapshot: bytes, address: int) -> int:
    """As fp_lookup does it."""
    found = word(snapshot, address >> 24, address >> 16 & 0xFF)
    for shift in (8, 0):
        if not found & layout.POINTER:
            break
        found = word(snapshot, found & ~layout.POINTER, address >> shift & 0xFF)
    return found


def lookup6(snapshot: bytes, address: int) -> int:
    """As fp_lookup6 does it."""
    at = layout.HEADER_CHUNK * layout.CHUNK_BYTES + 48
    found, shared, *halves = struct.unpack_from("=II4Q", snapshot, at)
    (prefix, mask) = (halves[0] << 64 | halves[1], halves[2] << 64 | halves[3])
    if not found or (address ^ prefix) & mask:
        return layout.NONE
    for byte in address.to_bytes(16, "big")[shared:]:
        found = word(snapshot, found & ~layout.POINTER, byte)
        if not found & layout.POINTER:
            return found
    raise AssertionError("the levels end before the address does")


def hop_address(snapshot: bytes, number: int) -> IPv4Address:
    high, low = hop_halves(snapshot, number)
    assert (high, low >> 32) == (0, 0xFFFF)
    return IPv4Address(low & 0xFFFFFFFF)


def hop_halves(snapshot: bytes, number: int) -> tuple[int, int]:
    high, low = struct.unpack_from("=QQ", snapshot, layout.HOPS_CHUNK * layout.CHUNK_BYTES + 32 * number)
    return high, low


def naive(table: ForwardTable, address: IPv4Address | IPv6Address) -> IPv4Address | str | None:
    """The owner of an address by looking at every prefix."""
    owners: list[tuple[int, IPv4Address | str]] = [
        (entry.prefix.prefixlen, IPv4Address(int(entry.hop.address))) for entry in table.entries if address in entry.prefix
    ]
    owners += [(prefix.prefixlen, "local") for prefix in table.local if address in prefix]
    return max(owners, key=lambda owner: owner[0])[1] if owners else None


networks = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length) if length else 0, length)),
    st.one_of(st.integers(0, 2**32 - 1), st.integers(0x0A050000, 0x0A0503FF)),
    st.integers(0, 32),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(networks, st.integers(-1, len(HOPS) - 1)), max_size=12, unique_by=lambda pair: pair[0]), st.data())
def test_every_address_finds_its_longest_prefix(prefixes: list[tuple[IPv4Network, int]], data: st.DataObject) -> None:
    table = ForwardTable(
        9,
        tuple(TableEntry(prefix, HOPS[hop]) for prefix, hop in prefixes if hop >= 0),
        tuple(prefix for prefix, hop in prefixes if hop < 0),
    )
    snapshot = build_snapshot(table, HEADER)
    edges = [int(prefix[end]) + more for prefix, _ in prefixes for end, more in ((0, 0), (0, -1), (-1, 0), (-1, 1))]
    for number in [data.draw(st.integers(0, 2**32 - 1)), *(edge % 2**32 for edge in edges)]:
        found = lookup(snapshot, number)
        owner = {layout.NONE: None, layout.LOCAL: "local"}.get(found, ...)
        assert naive(table, IPv4Address(number)) == (hop_address(snapshot, found - layout.FIRST_HOP) if owner is ... else owner)


networks6 = st.builds(
    lambda number, length: IPv6Network((number >> (128 - length) << (128 - length) if length else 0, length)),
    st.one_of(
        st.integers(0, 2**128 - 1),
        st.integers(0xFD00 << 112, (0xFD00 << 112) + 0xFFFF),
        st.integers(0, 0x3FFFF).map(lambda n: (0xFD00 << 112) + (n << 64)),
    ),
    st.integers(0, 128),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(networks6, st.integers(-1, len(HOPS) - 1)), max_size=12, unique_by=lambda pair: pair[0]), st.data())
def test_every_ipv6_address_finds_its_longest_prefix(prefixes: list[tuple[IPv6Network, int]], data: st.DataObject) -> None:
    table = ForwardTable(
        9,
        (
            TableEntry(IPv4Network("10.5.2.0/24"), HOPS[0]),
            *(TableEntry(prefix, HOPS[hop]) for prefix, hop in prefixes if hop >= 0),
        ),
        tuple(prefix for prefix, hop in prefixes if hop < 0),
    )
    snapshot = build_snapshot(table, HEADER)
    edges = [int(prefix[end]) + more for prefix, _ in prefixes for end, more in ((0, 0), (0, -1), (-1, 0), (-1, 1))]
    for number in [data.draw(st.integers(0, 2**128 - 1)), *(edge % 2**128 for edge in edges)]:
        found = lookup6(snapshot, number)
        owner = {layout.NONE: None, layout.LOCAL: "local"}.get(found, ...)
        assert naive(table, IPv6Address(number)) == (hop_address(snapshot, found - layout.FIRST_HOP) if owner is ... else owner)
    assert hop_address(snapshot, lookup(snapshot, 0x0A050201) - layout.FIRST_HOP) == HOPS[0].address


def test_a_usual_cluster_needs_two_loads_for_an_ipv6_address() -> None:
    """/64 subnets of a /48 differ in bytes 6 and 7."""
    entries = tuple(TableEntry(IPv6Network(((0xFD00 << 112) + (n << 64), 64)), HOPS[n % 4]) for n in range(0, 65536, 7))
    snapshot = build_snapshot(ForwardTable(1, entries, ()), HEADER)
    assert struct.unpack_from("=II", snapshot, layout.HEADER_CHUNK * layout.CHUNK_BYTES + 48)[1] == 6
    assert len(snapshot) == (layout.HOPS_CHUNK + 1 + 1 + 256) * layout.CHUNK_BYTES


def test_ipv6_prefixes_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNKS_MAX", 100)
    entries = tuple(TableEntry(IPv6Network((n << 64 | n << 96 | 0xFD << 120, 128)), HOPS[0]) for n in range(20))
    with pytest.raises(DatapathError, match="strewn too widely"):
        build_snapshot(ForwardTable(1, entries, ()), HEADER)


def test_hops_are_sorted_by_address_for_the_search() -> None:
    entries = tuple(TableEntry(IPv4Network(f"10.5.{n}.0/24"), hop) for n, hop in enumerate(reversed(HOPS)))
    snapshot = build_snapshot(ForwardTable(1, entries, ()), HEADER)
    assert [hop_address(snapshot, n) for n in range(4)] == [hop.address for hop in HOPS]


def test_a_large_table_is_built_whole() -> None:
    entries = tuple(TableEntry(IPv4Network((0x0A000000 + (n << 8), 24)), HOPS[n % 4]) for n in range(65536))
    snapshot = build_snapshot(ForwardTable(1, entries, ()), HEADER)
    assert hop_address(snapshot, lookup(snapshot, 0x0AFFFF07) - layout.FIRST_HOP) == HOPS[3].address
    assert len(snapshot) < 1 << 20


@pytest.mark.parametrize(("own", "peer"), [("172.31.0.1", "fd00::1"), ("fd00::1", "172.31.0.1")])
def test_a_peer_of_the_other_family_of_the_underlay_is_refused(own: str, peer: str) -> None:
    header = replace(HEADER, address=ip_address(own))
    table = ForwardTable(1, (TableEntry(IPv4Network("10.5.2.0/24"), Hop(ip_address(peer), 8285)),), ())
    with pytest.raises(DatapathError, match="one underlay is of one family"):
        build_snapshot(table, header)


def test_hops_over_ipv6_are_numbers_in_their_order_and_the_header_says_so() -> None:
    peers = [IPv6Address(text) for text in ("2001:db8::2", "fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::")]
    entries = tuple(TableEntry(IPv4Network(f"10.5.{n}.0/24"), Hop(peer, 8285)) for n, peer in enumerate(reversed(peers)))
    snapshot = build_snapshot(ForwardTable(1, entries, ()), replace(HEADER, address=IPv6Address("fd00::1")))
    assert [hop_halves(snapshot, n) for n in range(3)] == [(int(peer) >> 64, int(peer) & (1 << 64) - 1) for peer in peers]
    at = layout.HEADER_CHUNK * layout.CHUNK_BYTES
    assert struct.unpack_from("=I", snapshot, at + 4)[0] & layout.SIX
    assert struct.unpack_from("=QQ", snapshot, at + 88) == (0xFD00 << 48, 1)


def test_peers_have_keys_of_their_own() -> None:
    assert peer_key(IPv4Address("172.31.0.2")) == 0xAC1F0002
    racks = [IPv6Address((0xFD00 << 112) + (rack << 64) + host) for rack in range(1, 60) for host in range(1, 60)]
    assert len({peer_key(address) for address in racks}) == len(racks)


def test_counters_of_all_cpus_are_added() -> None:
    page = struct.pack("=96Q", *range(96))
    verdicts, others = sum_counters(page * 3, ("a", "b"))
    assert (verdicts["b"].packets, verdicts["b"].bytes) == (6, 9)
    assert others["bpf_up_udp_train"] == 3 * 65


def test_the_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("clang")
    assert compiler is not None, "a C compiler builds this package and has to be there"
    names = {
        "LAYOUT": "FP_BPF_LAYOUT", "CHUNK_BYTES": "FP_BPF_CHUNK_BYTES", "WORDS": "FP_BPF_WORDS",
        "HEADER_CHUNK": "FP_BPF_HEADER_CHUNK", "HOPS_CHUNK": "FP_BPF_HOPS_CHUNK", "HOPS_PER_CHUNK": "FP_BPF_HOPS_PER_CHUNK",
        "NONE": "FP_BPF_NONE", "LOCAL": "FP_BPF_LOCAL", "FIRST_HOP": "FP_BPF_FIRST_HOP", "POINTER": "FP_BPF_POINTER",
        "SOURCE_CHECK": "FP_BPF_SOURCE_CHECK", "CARRIES": "FP_BPF_CARRIES", "BYPASS": "FP_BPF_BYPASS",
        "INNER_GRO": "FP_BPF_INNER_GRO", "SELF_TEST": "FP_BPF_SELF_TEST", "WHOLE": "FP_BPF_WHOLE",
        "TRAINS": "FP_BPF_TRAINS", "SIX": "FP_BPF_SIX", "HOP_ECN": "FP_BPF_HOP_ECN",
        "HOP_SUPERPACKET": "FP_BPF_HOP_SUPERPACKET", "COUNTERS_BYTES": "sizeof(struct fp_bpf_counters)",
    }  # fmt: skip
    prints = "".join(f'printf("%u\\n", (unsigned)({name}));' for name in names.values())
    fields = (
        "layout",
        "flags",
        "generation",
        "hops",
        "mtu_bytes",
        "device",
        "underlay",
        "port_be",
        "bridge",
        "gro",
        "root6",
        "shared6",
        "prefix6",
        "mask6",
        "own",
    )
    prints += "".join(f'printf("%u\\n", (unsigned)offsetof(struct fp_bpf_header, {field}));' for field in fields)
    (tmp_path / "numbers.c").write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{LAYOUT_H}"\nint main(void) {{ {prints} return 0; }}\n'
    )
    subprocess.run([compiler, "-o", tmp_path / "numbers", tmp_path / "numbers.c"], check=True)
    printed = [int(line) for line in subprocess.check_output([tmp_path / "numbers"], text=True).split()]
    assert printed[: len(names)] == [getattr(layout, name) for name in names]
    assert printed[len(names) :] == [0, 4, 8, 16, 20, 24, 28, 32, 36, 40, 48, 52, 56, 72, 88]


def test_the_counter_names_are_those_of_the_header() -> None:
    listed = LAYOUT_H.read_text(encoding="utf-8").partition("#define FP_BPF_COUNTERS(X)")[2].partition("enum")[0]
    assert tuple(re.findall(r'X\(\w+, "(\w+)"', listed)) == layout.COUNTERS


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("bpf") / "overlay.bpf.o"
    problem = compile_object(ROOT / "csrc/bpf/overlay.bpf.c", target)
    assert problem is None, problem
    return target.read_bytes()


def test_the_object_holds_what_the_loader_needs(compiled: bytes) -> None:
    parsed = parse_object(compiled)
    assert set(parsed.programs) == {"fp_encap", "fp_decap", "fp_bypass", "fp_merged"}
    assert set(parsed.maps) == {"fp_tables", "fp_counters", "fp_peers", "fp_trains", "fp_wholes", "fp_thanks"}
    assert (parsed.licence, parsed.layout) == (b"GPL", LAYOUT)
    linked = parsed.programs["fp_decap"].linked(dict.fromkeys(parsed.maps, 77))
    assert len(linked) == len(parsed.programs["fp_decap"].instructions)


def test_an_object_of_another_version_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebpf_programs, "LAYOUT", LAYOUT + 1)
    with pytest.raises(PlatformError) as refused:
        ebpf_programs.read_object()
    assert str(refused.value) == (
        f"ebpf: overlay.bpf.o is of another version of flanpy (layout {LAYOUT}, here {LAYOUT + 1}); "
        "run `make build` in the checkout, or install flanpy anew"
    )


def test_no_prefix_of_an_object_is_taken(compiled: bytes) -> None:
    for size in [*range(0, 200), *range(200, len(compiled) - 1, 97), len(compiled) - 1]:
        with pytest.raises(ValueError, match="BPF object"):
            parse_object(compiled[:size])


def test_a_build_without_clang_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = compile_object(ROOT / "csrc/bpf/overlay.bpf.c", tmp_path / "out" / "overlay.bpf.o")
    assert problem is not None and "clang is not installed" in problem
    assert not (tmp_path / "out" / "overlay.bpf.o").exists()
