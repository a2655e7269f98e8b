"""The C parts on loopback: what the receiver counts, what the generator sends, what the timing loops time."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from flanpy.bench import core, native

MAGIC = 77
PROBE = struct.Struct("=IIQQ")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A sender that is connected to a receiver."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        native.prepare_receiver(receiver, 8 << 20)
        sender.connect(receiver.getsockname())
        yield sender, receiver


def probe(sequence: int, flow: int = 0, magic: int = MAGIC) -> bytes:
    return PROBE.pack(magic, flow, sequence, 1) + bytes(40)


def receive(receiver: socket.socket, flows: int = 2, flow_packets: int = 1000, stop: int | None = None) -> native.Received:
    """Count what has come; the sender is done already unless ``stop`` tells when."""
    readable, writable = os.pipe()
    os.close(writable)
    try:
        return native.receive(
            receiver,
            readable if stop is None else stop,
            magic=MAGIC,
            flows=flows,
            flow_packets=flow_packets,
            quiet_s=0.05,
            deadline_s=10.0,
        )
    finally:
        os.close(readable)


def test_every_packet_in_order_counts_once(pair: tuple[socket.socket, socket.socket]) -> None:
    for sequence in range(100):
        pair[0].send(probe(sequence))
    got = receive(pair[1])
    assert (got.packets, got.duplicates, got.reordered, got.foreign, got.bytes) == (100, 0, 0, 0, 6400)


def test_duplicates_are_counted_apart(pair: tuple[socket.socket, socket.socket]) -> None:
    for sequence in (0, 1, 1, 2, 0, 2, 3):
        pair[0].send(probe(sequence))
    got = receive(pair[1])
    assert (got.packets, got.duplicates, got.reordered) == (4, 3, 0)


def test_a_packet_behind_a_later_one_of_its_flow_is_reordered(pair: tuple[socket.socket, socket.socket]) -> None:
    for sequence, flow in ((0, 0), (3, 0), (1, 0), (2, 0), (4, 0), (0, 1), (1, 1)):
        pair[0].send(probe(sequence, flow))
    got = receive(pair[1])
    assert (got.packets, got.reordered, got.duplicates) == (7, 2, 0)


@pytest.mark.parametrize(
    "packet",
    [b"", b"short", probe(0)[: PROBE.size - 1], probe(0, magic=78), probe(0, flow=2), probe(1000), probe(2**64 - 1)],
    ids=["empty", "short", "one byte short", "another run", "flow out of range", "sequence at the bound", "sequence at the end"],
)
def test_what_is_not_of_this_run_is_foreign(pair: tuple[socket.socket, socket.socket], packet: bytes) -> None:
    pair[0].send(packet)
    got = receive(pair[1])
    assert (got.packets, got.foreign) == (0, 1)


def test_the_generator_sends_as_many_as_it_says_and_all_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    got: list[native.Received] = []
    stop, stopper = os.pipe()
    counting = threading.Thread(target=lambda: got.append(receive(pair[1], flows=1, flow_packets=10_000, stop=stop)))
    counting.start()
    sent = native.generate([pair[0]], magic=MAGIC, payload_bytes=64, train=40, rate_pps=50_000, seconds=2.0, packets=5_000)
    os.write(stopper, b"x")
    counting.join()
    os.close(stop)
    os.close(stopper)
    assert (sent.packets, got[0].packets, got[0].duplicates, got[0].reordered) == (5_000, 5_000, 0, 0)
    assert got[0].delay.count == 5_000


def test_a_paced_generator_keeps_its_rate(pair: tuple[socket.socket, socket.socket]) -> None:
    sent = native.generate([pair[0]], magic=MAGIC, payload_bytes=64, train=63, rate_pps=20_000, seconds=0.3, packets=1 << 30)
    assert 0.5 * 20_000 <= sent.packets / sent.elapsed_s <= 1.05 * 20_000


@pytest.mark.parametrize(
    ("payload_bytes", "train"),
    [(23, 1), (1473, 1), (64, 0), (64, 64), (1472, 63)],
    ids=["small", "large", "none", "many", "total"],
)
def test_sizes_out_of_range_are_refused(pair: tuple[socket.socket, socket.socket], payload_bytes: int, train: int) -> None:
    with pytest.raises(OSError) as caught:
        native.generate([pair[0]], magic=1, payload_bytes=payload_bytes, train=train, rate_pps=1, seconds=0.1, packets=1)
    assert caught.value.errno == errno.EINVAL


def test_every_request_is_answered_on_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answerer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        answerer.bind(("127.0.0.1", 0))
        asker.connect(answerer.getsockname())
        stop, stopper = os.pipe()
        answering = threading.Thread(target=native.answer, args=(answerer, stop, 10.0))
        answering.start()
        answers = native.ask(asker, payload_bytes=64, interval_s=0.0, timeout_s=2.0, seconds=5.0, requests=100)
        os.write(stopper, b"x")
        answering.join()
        os.close(stop)
        os.close(stopper)
    assert (answers.requests, answers.lost, answers.round_trip.count) == (100, 0, 100)
    assert 0 < answers.round_trip.quantile_ns(0.5) <= answers.round_trip.quantile_ns(0.99) <= answers.round_trip.max_ns


def test_a_request_without_an_answer_is_lost() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        silent.bind(("127.0.0.1", 0))
        asker.connect(silent.getsockname())
        answers = native.ask(asker, payload_bytes=64, interval_s=0.0, timeout_s=0.01, seconds=5.0, requests=3)
    assert (answers.requests, answers.lost, answers.round_trip.count) == (3, 3, 0)


def test_a_histogram_is_right_to_three_percent() -> None:
    histogram = native.Histogram(4, 10, 5000, 7010, ((10, 1), (500, 1), (1500, 1), (4992, 1)))
    assert [histogram.quantile_ns(share) for share in (0, 0.25, 0.5, 0.99, 1.0)] == [10, 500, 1500, 4992, 5000]


@pytest.mark.parametrize("case", list(core.cases()), ids=lambda case: case.key)
@pytest.mark.parametrize("naive", [False, True], ids=["core", "naive"])
def test_every_function_does_its_work_while_it_is_timed(case: core.Case, naive: bool) -> None:
    # The loops fail with EIO when a packet is refused, so a time is the time of work that was done.
    time = native.time_core(
        case.operation,
        naive=naive,
        packet_bytes=case.packet_bytes,
        routes=min(case.routes, 256) if naive else case.routes,
        repeated=case.repeated,
        alone=case.alone,
        seed=1,
        seconds=0.001,
    )
    assert time.packets > 0
    assert time.ns > 0


@pytest.mark.parametrize(("packet_bytes", "routes"), [(47, 1), (1461, 1), (64, 0), (64, 65537)])
def test_cases_out_of_range_are_refused(packet_bytes: int, routes: int) -> None:
    with pytest.raises(OSError) as caught:
        native.time_core("ENCAP", naive=False, packet_bytes=packet_bytes, routes=routes, repeated=False, seed=1, seconds=0.001)
    assert caught.value.errno == errno.EINVAL
