"""Netlink framing: what is packed comes back, and cut or lying input ends the reading instead of breaking it."""

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from flanpy.kernel.messages import Message, attribute, attributes, error_of, message, split

attribute_lists = st.dictionaries(st.integers(1, 200), st.binary(max_size=40), max_size=6)


def packed(values: dict[int, bytes]) -> bytes:
    return b"".join(attribute(kind, payload) for kind, payload in values.items())


@given(attribute_lists)
def test_attributes_come_back_as_they_were_packed(values: dict[int, bytes]) -> None:
    assert attributes(memoryview(b"head" + packed(values)), 4) == values


@given(st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=40)), max_size=5))
def test_messages_of_one_datagram_come_back_in_order(bodies: list[tuple[int, bytes]]) -> None:
    data = b"".join(message(kind, 0, i, body) for i, (kind, body) in enumerate(bodies))
    assert [(m.kind, m.sequence, bytes(m.body)) for m in split(memoryview(data))] == [
        (k, i, b) for i, (k, b) in enumerate(bodies)
    ]


def test_every_prefix_of_a_datagram_gives_only_whole_messages() -> None:
    data = message(24, 0, 1, b"abcd" * 3) + message(25, 0, 2, b"efgh")
    whole = [len(list(split(memoryview(data[:end])))) for end in range(len(data) + 1)]
    assert whole == [0] * 28 + [1] * 20 + [2]


def test_every_prefix_of_attributes_gives_only_whole_ones() -> None:
    data = attribute(1, b"12345678") + attribute(2, b"abcd")
    assert [len(attributes(memoryview(data[:end]), 0)) for end in range(len(data) + 1)] == [0] * 12 + [1] * 8 + [2]


@given(st.binary(max_size=120))
def test_random_bytes_never_break_the_reader(data: bytes) -> None:
    for received in split(memoryview(data)):
        attributes(received.body, 0)
        error_of(received)


def test_an_attribute_of_length_zero_ends_the_reading_at_once() -> None:
    assert attributes(memoryview(bytes(64)), 0) == {}


def test_an_error_carries_the_kernels_own_text() -> None:
    request = struct.pack("=IHHII", 60, 24, 5, 7, 0)
    capped = struct.pack("=i", -errno.EINVAL) + request + attribute(1, b"Invalid prefix\0")
    whole = struct.pack("=i", -errno.EINVAL) + request + bytes(44) + attribute(1, b"Invalid prefix\0")
    assert error_of(Message(2, 0x300, 7, 0, memoryview(capped))) == (errno.EINVAL, "Invalid prefix")
    assert error_of(Message(2, 0x200, 7, 0, memoryview(whole))) == (errno.EINVAL, "Invalid prefix")
    assert error_of(Message(2, 0, 7, 0, memoryview(whole))) == (errno.EINVAL, "")
    assert error_of(Message(2, 0, 7, 0, memoryview(struct.pack("=i", 0) + request))) == (0, "")
