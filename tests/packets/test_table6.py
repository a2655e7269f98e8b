"""The IPv6 part of the table against a naive oracle, and blobs in which it is damaged."""

import errno
import random
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.datapath.core import TableBlob, aligned, ffi, lib

NONE, LOCAL = int(lib.FP_HOP_NONE), int(lib.FP_HOP_LOCAL)
LAST = (1 << 128) - 1
Route = tuple[int, int, int]


def mask(length: int) -> int:
    return LAST ^ (LAST >> length)


def oracle(routes: list[Route], address: int) -> int:
    """Longest prefix first, then the first that matches."""
    for prefix, length, hop in sorted(routes, key=lambda route: -route[1]):
        if address & mask(length) == prefix:
            return hop
    return NONE


def native(routes: list[Route]) -> object:
    raw = ffi.new("struct fp_route6[]", max(len(routes), 1))
    for i, (prefix, length, hop) in enumerate(routes):
        raw[i] = {"prefix": {"bytes": prefix.to_bytes(16, "big")}, "prefix_len": length, "hop": hop}
    return raw


def build(routes: list[Route], room: int | None = None) -> TableBlob | int:
    """The blob of these sorted routes and eight hops, or the error number."""
    raw, hops = native(routes), ffi.new("struct fp_hop[]", 8)
    every = ffi.new("struct fp_routes *", (ffi.NULL, 0, raw, len(routes), hops, 8))
    size = lib.fp_table_bytes(every)
    owner, memory = aligned(max(size, 64))
    error = lib.fp_table_build(memory, size if room is None else room, 9, every)
    return TableBlob(owner, memory, size) if error == 0 else -error


def unique(routes: list[Route]) -> list[Route]:
    return [(prefix, length, hop) for (prefix, length), hop in sorted({(p & mask(n), n): h for p, n, h in routes}.items())]


def edges(routes: list[Route]) -> list[int]:
    """First and last address of every prefix and their neighbours."""
    found = [0, LAST]
    for prefix, length, _ in routes:
        end = prefix | (LAST >> length)
        found += [prefix - 1, prefix, end, end + 1]
    return [address & LAST for address in found]


def lookup(blob: TableBlob, address: int) -> int:
    return blob.lookup(IPv6Address(address & LAST))


bases = st.sampled_from(
    [0, LAST, 0xFD05 << 112, 0xFD05_0000_0000_0001 << 64, 0xFD05_0000_0000_FFFF << 64, 1 << 127, (1 << 64) - 1]
)
routes_nearby = st.lists(
    st.tuples(
        st.tuples(bases, st.integers(0, 0x1FFFF), st.sampled_from([0, 8, 48, 60, 64, 100])).map(lambda d: (d[0] ^ d[1] << d[2]) & LAST),
        st.sampled_from([0, 1, 7, 16, 32, 48, 56, 63, 64, 65, 72, 96, 120, 127, 128]),
        st.sampled_from([0, 1, 2, 7, LOCAL]),
    ),
    max_size=40,
).map(unique)  # fmt: skip


@given(routes_nearby, st.lists(st.integers(0, LAST), max_size=20))
def test_lookup_equals_the_oracle_at_every_edge(routes: list[Route], more: list[int]) -> None:
    blob = build(routes)
    assert isinstance(blob, TableBlob)
    assert lib.fp_table_check(blob.memory, blob.size) == 0
    for address in edges(routes) + more:
        assert lookup(blob, address) == oracle(routes, address)


@pytest.mark.parametrize("length", [56, 64, 80, 112, 124])
def test_a_network_full_of_subnets_of_one_length_is_found_whole(length: int) -> None:
    """As a cluster has them: consecutive subnets, one of them our own, pods of some on other nodes."""
    base, step = 0xFD05_0000 << 96, 1 << (128 - length)
    routes = [(base + i * step, length, LOCAL if i == 7 else i % 8) for i in range(2000)]
    routes += [(base + i * step + 5, 128, 3) for i in range(0, 2000, 50)]
    blob = build(unique(routes))
    assert isinstance(blob, TableBlob)
    by_prefix = {(prefix, n): hop for prefix, n, hop in routes}
    for i in range(2000):
        for offset in (0, 5, step - 1):
            address = base + i * step + offset
            expected = by_prefix.get((address, 128), by_prefix[(address & mask(length), length)])
            assert lookup(blob, address) == expected
    assert (lookup(blob, base - 1), lookup(blob, base + 2000 * step)) == (NONE, NONE)


@pytest.mark.parametrize("seed", range(3))
def test_lookup_equals_the_oracle_for_thousands_of_random_routes(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = [0xFD05 << 112, 0xFD05_0000_0000_0000_0001 << 48, 0x2001_0DB8 << 96]
    drawn = [
        (
            rng.choice(prefixes) ^ rng.getrandbits(rng.choice([16, 40, 64, 80])),
            rng.choice([48, 56, 64, 64, 64, 96, 128]),
            rng.randrange(8),
        )
        for _ in range(3000)
    ]
    routes = unique(drawn)
    by_prefix = {(prefix, n): hop for prefix, n, hop in routes}
    blob = build(routes)
    assert isinstance(blob, TableBlob)
    for address in [rng.choice(edges(routes[:300])) for _ in range(1500)] + [
        rng.choice(prefixes) ^ rng.getrandbits(64) for _ in range(1500)
    ]:
        keys = ((address & mask(length), length) for length in range(128, -1, -1))
        assert lookup(blob, address) == next((by_prefix[key] for key in keys if key in by_prefix), NONE)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 128), st.integers(0, 5)), max_size=40))
def test_sorting_gives_ascending_prefixes_and_lengths(drawn: list[Route]) -> None:
    raw = native([(prefix << 120, length, hop) for prefix, length, hop in drawn])
    lib.fp_routes6_sort(raw, len(drawn))
    result = [(raw[i].prefix.bytes[0], raw[i].prefix_len, raw[i].hop) for i in range(len(drawn))]  # type: ignore[index]
    assert [route[:2] for route in result] == sorted(route[:2] for route in drawn)
    assert sorted(result) == sorted(drawn)


@pytest.mark.parametrize(
    "routes",
    [
        [(0, 129, 0)],
        [(1, 127, 0)],
        [(1 << 64, 63, 0)],
        [(1 << 63, 64, 0)],
        [(1, 0, 0)],
        [(0, 64, 8)],
        [(0, 64, NONE)],
        [(0, 64, 0), (0, 64, 1)],
        [(1 << 64, 64, 0), (0, 64, 0)],
        [(0, 64, 0), (0, 48, 0)],
    ],
    ids=["length 129", "host bit", "host bit above", "host bit below", "default", "hop", "hop none", "twice", "order", "lengths"],
)
def test_invalid_routes_are_refused(routes: list[Route]) -> None:
    assert build(routes) == errno.EINVAL


def test_too_little_memory_is_refused() -> None:
    whole = build([(0xFD05 << 112, 64, 0)])
    assert isinstance(whole, TableBlob)
    assert build([(0xFD05 << 112, 64, 0)], room=whole.size - 1) == errno.ENOSPC


# ------------------------------------------------------------------------------------------------------------------ hostile

GOOD_ROUTES = [((0xFD05 << 112) + (i << 64), 64, i % 8) for i in range(100)]
RANGES6_AT, SLOTS6_AT, RANGES6, SLOTS6, SHIFT6 = 72, 80, 104, 108, 112


def good() -> bytes:
    blob = build(GOOD_ROUTES)
    assert isinstance(blob, TableBlob)
    return bytes(blob)


GOOD = good()


def place(at: int) -> int:
    return int.from_bytes(GOOD[at : at + 8], "little")


def refused_or_harmless(data: bytes) -> bool:
    owner, memory = aligned(len(data))
    ffi.memmove(memory, data, len(data))
    blob = TableBlob(owner, memory, len(data))
    if lib.fp_table_check(memory, len(data)) != 0:
        return True
    found = {lookup(blob, address) for prefix, _, _ in GOOD_ROUTES for address in (0, prefix - 1, prefix, prefix + 9, LAST)}
    return all(hop < 8 or hop in (NONE, LOCAL) for hop in found)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (place(RANGES6_AT), 1),
        (place(RANGES6_AT) + 24 + 16, 8),
        (place(RANGES6_AT) + 24 + 16, 0x80000000),
        (place(RANGES6_AT) + 48, 0),
        (place(SLOTS6_AT), 50),
        (place(SLOTS6_AT) + 4, 0xFFFFFFFF),
        (RANGES6, 0xFFFFFFFF),
        (RANGES6, 1),
        (SLOTS6, 0),
        (SLOTS6, 0xFFFFFFFF),
        (SHIFT6, 128),
        (RANGES6_AT, 0),
        (SLOTS6_AT, 0xFFFFFFFC),
    ],
)  # fmt: skip
def test_a_part_that_a_lookup_could_stray_by_is_refused(at: int, value: int) -> None:
    data = GOOD[:at] + value.to_bytes(4, "little") + GOOD[at + 4 :]
    owner, memory = aligned(len(data))
    ffi.memmove(memory, data, len(data))
    assert lib.fp_table_check(memory, len(data)) == -errno.EINVAL
    assert owner is not None


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 0xFFFFFFFF)), min_size=1, max_size=4))
def test_a_damaged_blob_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    data, behind_root = bytearray(GOOD), 128 + 4 * 65536
    for where, word in changes:
        at = behind_root + where * 4 % (len(data) - behind_root)
        data[at : at + 4] = word.to_bytes(4, "little")
    assert refused_or_harmless(bytes(data))
