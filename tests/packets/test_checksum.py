"""Every implementation of the ones' complement sum against the slow oracle."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.datapath.core import cpu, ffi, lib
from tests.support.packets import ones_sum

KINDS = [kind for kind in range(lib.FP_CPU_KINDS) if lib.fp_cpu_has(kind)]
NAMES = [ffi.string(lib.fp_cpu_name(kind)).decode() for kind in KINDS]
GUARD = 0xA5


def folded(value: int) -> int:
    """As bytes in memory, read big-endian: the sum is in native order."""
    return int.from_bytes(int(lib.fp_fold(value)).to_bytes(2, sys.byteorder), "big")


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_sum_equals_the_oracle_at_every_length_and_alignment(kind: int) -> None:
    data = random.Random(1).randbytes(700)
    memory = ffi.new("uint8_t[]", data)
    for length in [*range(300), 511, 512, 513, 639]:
        for start in (0, 1, 3, 8, 31, 60):
            assert folded(lib.fp_sum_on(kind, memory + start, length, 0)) == ones_sum(data[start : start + length])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_copy_sum_copies_exactly_these_bytes_and_sums_them(kind: int) -> None:
    data = random.Random(2).randbytes(700)
    source = ffi.new("uint8_t[]", data)
    for length in [*range(300), 511, 512, 513, 639]:
        for start, to in ((0, 0), (1, 0), (0, 1), (5, 3), (60, 33)):
            target = ffi.new("uint8_t[]", bytes([GUARD]) * 800)
            sum_ = lib.fp_copy_sum_on(kind, target + to, source + start, length, 0)
            expected = bytes([GUARD]) * to + data[start : start + length]
            assert bytes(ffi.buffer(target, 800)) == expected.ljust(800, bytes([GUARD]))
            assert folded(sum_) == ones_sum(data[start : start + length])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize(
    "data", [b"\0" * 65535, b"\xff" * 65535, b"\xff" * 65534, b"\xff\xfe" * 32000], ids=["0", "ff", "ff even", "fffe"]
)
def test_long_extremes_do_not_lose_a_carry(kind: int, data: bytes) -> None:
    memory = ffi.new("uint8_t[]", data)
    assert folded(lib.fp_sum_on(kind, memory, len(data), 0)) == ones_sum(data)


@given(st.lists(st.binary(max_size=300).map(lambda data: data + b"\0" * (len(data) % 2)), max_size=5), st.binary(max_size=300))
def test_sums_of_even_parts_add_up(parts: list[bytes], tail: bytes) -> None:
    for kind in KINDS:
        total = 2**64 - 1  # zero in ones' complement, and the accumulator that is nearest to a lost carry
        for part in [*parts, tail]:
            total = lib.fp_sum_on(kind, ffi.new("uint8_t[]", part or b"\0"), len(part), total)
        assert folded(total) % 0xFFFF == ones_sum(b"".join(parts) + tail) % 0xFFFF


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_fold_keeps_the_value_modulo_65535(value: int) -> None:
    result = lib.fp_fold(value)
    assert result % 0xFFFF == value % 0xFFFF
    assert (result == 0) == (value == 0)


def test_the_implementation_in_use_is_the_best_that_this_cpu_has() -> None:
    assert cpu() == NAMES[-1]
    assert lib.fp_cpu_name(lib.FP_CPU_KINDS) == ffi.NULL
