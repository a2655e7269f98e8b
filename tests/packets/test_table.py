"""The longest-prefix table against a naive oracle, and blobs that are not ours."""

import errno
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.datapath.core import TableBlob, address_bytes, aligned, build_table, ffi, lib
from flanpy.errors import DatapathError
from flanpy.model import ForwardTable, Hop, TableEntry
from tests.support.core import PEER_A, PEER_B, table

NONE, LOCAL = lib.FP_HOP_NONE, lib.FP_HOP_LOCAL
Route = tuple[int, int, int]


def oracle(routes: list[Route], address: int) -> int:
    """Longest prefix first, then the first that matches."""
    for prefix, length, hop in sorted(routes, key=lambda route: -route[1]):
        if length == 0 or prefix >> (32 - length) == address >> (32 - length):
            return hop
    return int(NONE)


def hops(count: int) -> object:
    """``count`` hops with addresses in no order."""
    values = ffi.new("struct fp_hop[]", max(count, 1))
    for i in range(count):
        values[i].address.bytes = address_bytes(IPv4Address((i * 2654435761) & 0xFFFFFFFF))
    return values


def build(routes: list[Route], n_hops: int = 8, room: int | None = None) -> TableBlob | int:
    """The blob, or the error number."""
    raw = ffi.new("struct fp_route4[]", [list(route) for route in routes] or [[0, 0, 0]])
    values = hops(n_hops)
    every = ffi.new("struct fp_routes *", (raw, len(routes), ffi.NULL, 0, values, n_hops))
    size = lib.fp_table_bytes(every)
    owner, memory = aligned(max(size, 64))
    error = lib.fp_table_build(memory, size if room is None else room, 9, every)
    return TableBlob(owner, memory, size) if error == 0 else -error


def masked(address: int, length: int) -> int:
    return address & (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


def edges(routes: list[Route]) -> list[int]:
    """First and last address of every prefix and their neighbours."""
    found = [0, 0xFFFFFFFF]
    for prefix, length, _ in routes:
        end = prefix + (1 << (32 - length)) - 1
        found += [prefix - 1, prefix, end, end + 1]
    return [address & 0xFFFFFFFF for address in found]


def unique(routes: list[Route]) -> list[Route]:
    return [(prefix, length, hop) for (prefix, length), hop in sorted({(p, n): h for p, n, h in routes}.items())]


routes_nearby = st.lists(
    st.tuples(
        st.sampled_from([0x0A000000, 0x0A00FF00, 0x0A010000, 0x0AFFFFFF, 0xFFFFFFFF, 0, 0x7FFFFFFF]),
        st.integers(0, 0x1FFFF),
        st.integers(0, 32),
        st.sampled_from([0, 1, 2, 7, LOCAL]),
    ).map(lambda value: (masked((value[0] ^ value[1]) & 0xFFFFFFFF, value[2]), value[2], value[3])),
    max_size=40,
).map(unique)


@given(routes_nearby, st.lists(st.integers(0, 0xFFFFFFFF), max_size=20))
def test_lookup_equals_the_oracle_at_every_edge(routes: list[Route], more: list[int]) -> None:
    blob = build(routes)
    assert isinstance(blob, TableBlob)
    assert lib.fp_table_check(blob.memory, blob.size) == 0
    for address in edges(routes) + more:
        assert lib.fp_table_lookup4(blob.table, address) == oracle(routes, address)


@pytest.mark.parametrize("seed", range(4))
def test_lookup_equals_the_oracle_for_thousands_of_random_routes(seed: int) -> None:
    rng = random.Random(seed)
    drawn = []
    for _ in range(3000):
        length = rng.choice([8, 12, 16, 20, 22, 24, 24, 24, 28, 30, 32])
        drawn.append((masked(rng.choice([0x0A000000, 0x0A050000]) + rng.randrange(1 << 24), length), length, rng.randrange(8)))
    routes = unique(drawn)
    by_prefix = {(prefix, length): hop for prefix, length, hop in routes}
    blob = build(routes)
    assert isinstance(blob, TableBlob)
    for address in [rng.choice(edges(routes[:200])) for _ in range(500)] + [
        0x0A000000 + rng.randrange(1 << 25) for _ in range(3000)
    ]:
        keys = ((masked(address, length), length) for length in range(32, -1, -1))
        expected = next((by_prefix[key] for key in keys if key in by_prefix), NONE)
        assert lib.fp_table_lookup4(blob.table, address) == expected


def test_an_empty_table_has_no_route_anywhere() -> None:
    blob = build([], n_hops=0)
    assert isinstance(blob, TableBlob)
    assert {lib.fp_table_lookup4(blob.table, address) for address in (0, 1, 0x0A000001, 0xFFFFFFFF)} == {NONE}
    assert lib.fp_table_hop(blob.table, 0) == ffi.NULL


@pytest.mark.parametrize(
    "routes",
    [
        [(0, 33, 0)],
        [(0x0A000001, 24, 0)],
        [(1, 0, 0)],
        [(0x0A000000, 24, 8)],
        [(0x0A000000, 24, int(NONE))],
        [(0x0A000000, 24, 0), (0x0A000000, 24, 1)],
        [(0x0B000000, 24, 0), (0x0A000000, 24, 0)],
        [(0x0A000000, 24, 0), (0x0A000000, 16, 0)],
    ],
    ids=[
        "length 33",
        "host bits",
        "host bits of a default route",
        "hop out of range",
        "hop none",
        "twice",
        "order",
        "order of lengths",
    ],
)
def test_invalid_routes_are_refused(routes: list[Route]) -> None:
    raw = ffi.new("struct fp_route4[]", [list(route) for route in routes])
    assert lib.fp_table_bytes(ffi.new("struct fp_routes *", (raw, len(routes), ffi.NULL, 0, ffi.NULL, 8))) == 0
    assert build(routes) == errno.EINVAL


def test_too_little_memory_is_refused_and_so_is_a_crooked_address() -> None:
    routes = [(0x0A000000, 24, 0), (0x0A000100, 24, 1)]
    whole = build(routes)
    assert isinstance(whole, TableBlob)
    assert build(routes, room=whole.size - 1) == errno.ENOSPC
    raw = ffi.new("struct fp_route4[]", [list(route) for route in routes])
    every = ffi.new("struct fp_routes *", (raw, 2, ffi.NULL, 0, hops(8), 8))
    assert lib.fp_table_build(whole.memory + 8, whole.size, 1, every) == -errno.EFAULT


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 32), st.integers(0, 5)), max_size=60))
def test_sorting_gives_ascending_prefixes_and_lengths(drawn: list[Route]) -> None:
    raw = ffi.new("struct fp_route4[]", [list(route) for route in drawn] or [[0, 0, 0]])
    lib.fp_routes_sort(raw, len(drawn))
    result = [(raw[i].prefix, raw[i].prefix_len, raw[i].hop) for i in range(len(drawn))]
    assert [route[:2] for route in result] == sorted(route[:2] for route in drawn)
    assert sorted(result) == sorted(drawn)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_every_hop_address_is_known_and_no_other(count: int) -> None:
    blob = build([], n_hops=count)
    assert isinstance(blob, TableBlob)
    for i in range(count):
        known = ffi.new("struct fp_address *", {"bytes": address_bytes(IPv4Address((i * 2654435761) & 0xFFFFFFFF))})
        assert lib.fp_table_knows_address(blob.table, known)
    for address in (IPv4Address("0.0.0.1"), IPv4Address("255.255.255.255"), IPv6Address("::"), IPv6Address("ffff::")):
        assert not lib.fp_table_knows_address(blob.table, ffi.new("struct fp_address *", {"bytes": address_bytes(address)}))


# ---------------------------------------------------------------------------------------------------- from a ForwardTable


def test_a_forward_table_becomes_a_blob_with_its_generation_and_hops() -> None:
    entries = (
        TableEntry(IPv4Network("10.5.0.0/16"), PEER_A),
        TableEntry(IPv4Network("10.5.9.9/32"), PEER_B),
        TableEntry(IPv4Network("10.5.8.0/24"), Hop(IPv4Address("172.16.0.2"), 8285)),
        TableEntry(IPv6Network("fd00::/64"), PEER_B),
    )
    blob = build_table(ForwardTable(41, entries, (IPv4Network("10.5.1.0/24"), IPv6Network("fd01::/64"))))
    first = blob.lookup(IPv4Address("10.5.2.2"))
    assert lib.fp_table_generation(blob.table) == 41
    assert lib.fp_table_size(blob.table) == blob.size == len(bytes(blob))
    assert blob.lookup(IPv4Address("10.5.1.255")) == LOCAL
    assert blob.lookup(IPv4Address("10.5.8.1")) == first
    second = lib.fp_table_hop(blob.table, blob.lookup(IPv4Address("10.5.9.9")))
    assert bytes(ffi.buffer(second.address.bytes)) == address_bytes(PEER_B.address)
    assert second.port == 8285
    assert blob.lookup(IPv6Address("fd00::7")) == blob.lookup(IPv4Address("10.5.9.9"))
    assert (blob.lookup(IPv6Address("fd01::7")), blob.lookup(IPv6Address("fd02::7"))) == (LOCAL, NONE)


def test_our_own_prefix_wins_over_a_peer_that_claims_it() -> None:
    blob = build_table(table([("10.5.1.0/24", PEER_A), ("10.5.1.7/32", PEER_A)]))
    assert blob.lookup(IPv4Address("10.5.1.6")) == LOCAL
    assert blob.lookup(IPv4Address("10.5.1.7")) == 0


def test_two_hops_for_one_prefix_are_an_error_that_says_so() -> None:
    with pytest.raises(DatapathError, match="two entries have one prefix"):
        build_table(table([("10.5.2.0/24", PEER_A), ("10.5.2.0/24", PEER_B)]))


# ------------------------------------------------------------------------------------------------------- hostile blobs


def good_blob() -> TableBlob:
    """Has upper and lower nodes, small and big ones."""
    routes = [(0x0A050000 + (i << 8), 24, i % 3) for i in range(40)] + [(0x0A060003, 32, 1)]
    routes += [(0x0A070100 + i, 32, i % 7) for i in range(0, 200, 2)]
    blob = build(routes)
    assert isinstance(blob, TableBlob)
    return blob


def check(data: bytes, *, claimed: int | None = None, shift: int = 0) -> int:
    _owner, memory = aligned(len(data) + 64)
    ffi.memmove(memory + shift, data, len(data))
    return int(lib.fp_table_check(memory + shift, len(data) if claimed is None else claimed))


def test_a_good_blob_passes_and_every_wrong_length_or_place_does_not() -> None:
    data = bytes(good_blob())
    assert check(data) == 0
    assert check(data, shift=8) == -errno.EINVAL
    for length in (0, 1, 63, 127, 128, 262271, 262272, 262273, len(data) - 64, len(data) - 1):
        assert check(data[:length]) == -errno.EINVAL
    assert check(data + b"\0" * 64) == -errno.EINVAL
    assert lib.fp_table_check(ffi.NULL, 0) == -errno.EINVAL


def test_every_changed_header_word_is_refused_or_harmless() -> None:
    data = bytes(good_blob())
    for at in range(0, 128, 4):
        for word in (0, 1, 4, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF):
            changed = data[:at] + word.to_bytes(4, "little") + data[at + 4 :]
            assert check(changed) == -errno.EINVAL or lookups_stay_inside(changed)


def lookups_stay_inside(data: bytes) -> bool:
    """Under AddressSanitizer (tests/fuzz) this would catch a stray read; here it must not crash and give a valid hop."""
    owner, memory = aligned(len(data))
    ffi.memmove(memory, data, len(data))
    blob = TableBlob(owner, memory, len(data))
    limit = int.from_bytes(data[36:40], "little")
    found = {blob.lookup(IPv4Address(0x0A050000 + step * 97)) for step in range(3000)}
    return all(hop < limit or hop in (NONE, LOCAL) for hop in found)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 0xFFFFFFFF)), min_size=1, max_size=4))
def test_a_damaged_blob_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    data = bytearray(bytes(DAMAGE_THIS))
    for place, word in changes:
        at = (place * 4) % (len(data) - DAMAGE_FROM) + DAMAGE_FROM
        at -= at % 4
        data[at : at + 4] = word.to_bytes(4, "little")
    assert check(bytes(data)) == -errno.EINVAL or lookups_stay_inside(bytes(data))


DAMAGE_THIS = good_blob()
DAMAGE_FROM = 128 + 4 * 65536  # nodes, hops and values: behind the root


@pytest.mark.parametrize(
    ("name", "at", "word"),
    [
        ("root entry names a node that is not there", 128, 0x80000000 | 0x3FFF),
        ("root entry names a lower node", 128, 0x80000000 | 3),
        ("root entry is a hop out of range", 128, 8),
        ("node: entry 0 begins no run", DAMAGE_FROM, 0),
        ("node: wrong rank", DAMAGE_FROM + 32, 0xFFFFFFFF),
        ("node: values in the header", DAMAGE_FROM + 36, 0),
        ("node: values past the end", DAMAGE_FROM + 36, 0xFFFFFF00),
    ],
)
def test_a_blob_that_would_lead_astray_is_refused(name: str, at: int, word: int) -> None:
    data = bytes(DAMAGE_THIS)
    assert check(data[:at] + word.to_bytes(4, "little") + data[at + 4 :]) == -errno.EINVAL, name
