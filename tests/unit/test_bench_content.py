"""The comparison of random content: the right stream passes, a lost, doubled, changed or missing byte is found where it is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from flanpy.bench import content_process
from flanpy.bench.content_process import BLOCK_BYTES, block_of, compare, first_difference, pool_of, sizes

TOTAL = 2 * BLOCK_BYTES + 12_345


@pytest.fixture(scope="module")
def pool() -> bytes:
    return pool_of(7)


def compared(pool: bytes, sent: bytes) -> tuple[int, int | None]:
    """What the receiver finds in a stream: bytes, and where they differ."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (ours.sendall(sent), ours.shutdown(socket.SHUT_WR)))
        sender.start()
        found = compare(theirs, pool, TOTAL)
        while theirs.recv(1 << 20):
            pass
        sender.join()
    return found["bytes"], found["differs_at"]


def stream(pool: bytes) -> bytes:
    return b"".join(block_of(pool, number, size) for number, size in enumerate(sizes(TOTAL)))


def test_the_right_content_passes(pool: bytes) -> None:
    assert compared(pool, stream(pool)) == (TOTAL, None)


@pytest.mark.parametrize(
    ("damage", "differs_at"),
    [
        (lambda right: right[:5000] + bytes([right[5000] ^ 1]) + right[5001:], 5000),
        (lambda right: right[: BLOCK_BYTES + 9], BLOCK_BYTES + 9),
        (lambda right: right[:BLOCK_BYTES] + right[:BLOCK_BYTES] + right[2 * BLOCK_BYTES :], BLOCK_BYTES),
        (lambda right: b"", 0),
    ],
    ids=["one bit", "cut short", "a block twice", "nothing"],
)
def test_what_was_not_sent_is_found_where_it_is(pool: bytes, damage: Callable[[bytes], bytes], differs_at: int) -> None:
    assert compared(pool, damage(stream(pool)))[1] == differs_at


def test_blocks_of_one_stream_are_taken_from_different_places(pool: bytes) -> None:
    starts = {block_of(pool, number, 64) for number in range(10_000)}
    assert len(starts) == 10_000


def test_equal_blocks_do_not_differ() -> None:
    assert first_difference(b"abc", b"abc") is None
    assert first_difference(b"abc", b"abd") == 2
    assert first_difference(b"abc", b"ab") == 2


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(SystemExit):
        content_process.main(["send"])
