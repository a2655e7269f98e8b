"""Which packets are of bulk flows, and that none that goes before them overtakes its own flow."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from itertools import pairwise

import pytest

from flanpy.datapath.core import ffi, lib
from tests.support.packets import Packet

BULK_PACKETS = -(-lib.FP_BULK_BYTES // 1000)
"""Packets of 1000 bytes that make a flow bulk."""


class Flows:
    """The table of a worker's outward direction."""

    def __init__(self, now_ms: int = 0) -> None:
        self.flows = ffi.new("struct fp_flows *")
        lib.fp_flows_init(self.flows)
        self.flows.now_ms = now_ms

    def take(self, packet: bytes) -> bool:
        return bool(lib.fp_flows_take(self.flows, ffi.from_buffer(packet), len(packet)))

    def send_batch(self) -> None:
        lib.fp_flows_next_batch(self.flows)
        lib.fp_flows_sent(self.flows)

    def pass_ms(self, duration: int) -> None:
        self.flows.now_ms = (self.flows.now_ms + duration) % 2**32


@functools.cache
def udp(sport: int, size: int = 1000, *, fragment: int = 0) -> bytes:
    whole = bytearray(Packet(udp=True, sport=sport, payload=bytes(size - 28), df=False).raw())
    whole[6:8] = fragment.to_bytes(2, "big")  # the checksum is judged elsewhere
    return bytes(whole)


@pytest.mark.parametrize("start_ms", [0, 1, 2**31, 2**32 - 5])
def test_a_flow_is_bulk_from_64_kb_in_16_ms_on_and_until_50_ms_later(start_ms: int) -> None:
    flows = Flows(start_ms)
    assert [flows.take(udp(1)) for _ in range(BULK_PACKETS)] == [False] * (BULK_PACKETS - 1) + [True]
    assert not flows.take(udp(2)), "another flow is not"
    flows.send_batch()
    flows.pass_ms(49)
    assert flows.take(udp(1))
    flows.send_batch()
    flows.pass_ms(1)
    assert not flows.take(udp(1))


def test_a_steady_flow_of_less_is_never_bulk() -> None:
    flows = Flows()
    for _ in range(1000):
        assert not any(flows.take(udp(1)) for _ in range(3))
        flows.pass_ms(1)


def test_the_second_superpacket_of_a_flow_is_bulk() -> None:
    flows = Flows()
    assert [flows.take(udp(1, 65535)) for _ in range(2)] == [False, True]


def test_that_no_fragment_came_for_half_a_round_of_batches_makes_nothing_bulk() -> None:
    flows = Flows()
    flows.flows.filling = flows.flows.oldest = 2**31 - 1
    flows.send_batch()
    flows.send_batch()
    flows.send_batch()
    taken = []
    for _ in range(3):
        taken.append(flows.take(udp(2)))
        flows.send_batch()
    assert taken == [True, False, False], "the slot is as old as the numbers, once"


def test_what_waits_in_a_batch_keeps_its_flow_there_however_long() -> None:
    flows = Flows()
    for _ in range(BULK_PACKETS):
        flows.take(udp(1))
    lib.fp_flows_next_batch(flows.flows)
    flows.pass_ms(10_000)
    assert not flows.take(udp(2))
    assert flows.take(udp(1)), "it would overtake what waits"
    lib.fp_flows_sent(flows.flows)
    assert flows.take(udp(1)), "so it would now: the second one waits in the next batch"
    flows.send_batch()
    assert not flows.take(udp(1))


def test_behind_a_fragment_everything_waits() -> None:
    flows = Flows()
    assert flows.take(udp(1, fragment=0x2000)), "more fragments follow"
    assert [flows.take(udp(sport)) for sport in (1, 2)] == [True, True]
    flows.send_batch()
    assert [flows.take(udp(sport)) for sport in (1, 2)] == [False, False]


def test_what_is_no_packet_is_not_kept() -> None:
    flows = Flows()
    whole = udp(1)
    assert not any(flows.take(bytes(first) + whole[1:n]) for first in (b"\x00", b"\xff", b"\x65") for n in range(1, 39))
    assert not any(flows.take(whole[:n]) for n in range(60))


@pytest.mark.parametrize("seed", range(20))
def test_no_packet_overtakes_its_flow_whatever_happens(seed: int) -> None:
    """Against a model of the worker: what is not bulk leaves at once, batches one after the other; fragments are of no flow and of all."""
    rng, flows = random.Random(seed), Flows(2**32 - 500)
    batches: list[list[tuple[int, int]]] = [[]]
    left: list[tuple[int, int]] = []
    closed = 0  # batches that are not filled any more, at the front of the list
    for number in range(5000):
        match rng.choices(["packet", "next", "sent", "time"], [90, 4, 5, 1])[0]:
            case "packet":
                sport = rng.choice([1, 1, 1, 2, 3])
                fragment = 0x2000 if rng.random() < 0.003 else 0
                bulk = flows.take(udp(sport, rng.choice([40, 1000, 20_000]), fragment=fragment))
                (batches[-1] if bulk else left).append((0 if fragment else sport, number))
            case "next" if closed == 0:
                lib.fp_flows_next_batch(flows.flows)
                batches.append([])
                closed = 1
            case "sent" if closed:
                lib.fp_flows_sent(flows.flows)
                left += batches.pop(0)
                closed = 0
            case "time":
                flows.pass_ms(rng.choice([1, 20, 60, 2**31]))
    left += [each for batch in batches for each in batch]
    of_flow = defaultdict(list)
    for flow, number in left:
        for each in (flow,) if flow else (0, 1, 2, 3):
            of_flow[each].append(number)
    assert all(a < b for numbers in of_flow.values() for a, b in pairwise(numbers))
    assert len(left) != sum(len(batch) for batch in batches), "some have left before"


def test_a_packet_asked_for_again_when_a_full_batch_has_been_sent_is_of_the_one_that_takes_it() -> None:
    flows = Flows()
    assert flows.take(udp(1, fragment=0x2000))
    assert flows.take(udp(2)), "the fragment may be of its flow; the batch is full"
    flows.send_batch()
    assert not flows.take(udp(2)), "nothing waits any more"
    for _ in range(BULK_PACKETS):
        bulk = flows.take(udp(3))
    assert bulk
    flows.send_batch()
    assert flows.take(udp(3)), "still bulk, and of this batch"
    flows.pass_ms(60)
    assert flows.take(udp(3)), "slow by now, and what came before waits"
