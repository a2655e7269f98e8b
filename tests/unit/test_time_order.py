"""Packets of several queues in the order of their time: a recorded feed, any feed within the window, and what is held at most."""

from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.time_order import TimeOrder

WINDOW_NS = 20_000_000
INNER, OUTER = 0, 1

FEED = [
    (OUTER, 310_500, "reply, outer in"),
    (OUTER, 900_700, "second request, outer out"),
    (INNER, 100_200, "request, inner out"),
    (INNER, 310_500, "reply, inner in"),
    (OUTER, 905_000, "second reply, outer in"),
    (INNER, 899_000, "second request, inner out"),
    (INNER, 905_100, "second reply, inner in"),
]
"""Queue, nanoseconds and name of packets as two sockets gave them while the underlay's queue was read first: two pings by the ebpf
datapath, which hands an inner packet on with the outer one's time stamp."""


def test_a_recorded_feed_comes_out_with_each_outer_packet_behind_its_inner_one() -> None:
    order: TimeOrder[str] = TimeOrder(2, WINDOW_NS, 1 << 20)
    shown: list[str] = []
    for queue, time_ns, name in FEED:
        order.reached(queue, time_ns)
        order.add(time_ns, int((queue == OUTER) == name.endswith("out")), 100, name)
        shown += order.due()
    assert shown == []
    for queue in (INNER, OUTER):
        order.reached(queue, 905_101 + WINDOW_NS)
    shown += order.due()
    assert (shown, len(order)) == (
        [
            "request, inner out",
            "reply, outer in",
            "reply, inner in",
            "second request, inner out",
            "second request, outer out",
            "second reply, outer in",
            "second reply, inner in",
        ],
        0,
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**9)), max_size=60), st.data())
def test_whatever_the_queues_bring_within_the_window_comes_out_sorted_and_whole(
    stamps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Each packet arrives in its queue up to a window after its stamp; queues are read in any order."""
    waiting: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for queue, time_ns in sorted(stamps, key=lambda stamp: stamp[1] + data.draw(st.integers(0, WINDOW_NS))):
        waiting[queue].append(time_ns)
    order: TimeOrder[int] = TimeOrder(3, WINDOW_NS, 1 << 40)
    shown: list[int] = []
    while any(waiting.values()):
        queue = data.draw(st.sampled_from([number for number, times in waiting.items() if times]))
        time_ns = waiting[queue].pop(0)
        order.reached(queue, time_ns)
        order.add(time_ns, 0, 1, time_ns)
        shown += order.due()
        if not waiting[queue]:
            order.reached(queue, 2 * 10**9)
    shown += order.rest()
    assert shown == sorted(time_ns for _, time_ns in stamps)


def test_a_queue_that_gives_nothing_holds_no_more_than_there_is_room_for() -> None:
    order: TimeOrder[int] = TimeOrder(2, WINDOW_NS, 1000)
    for number in range(20):
        order.reached(0, number * WINDOW_NS)
        order.add(number * WINDOW_NS, 0, 100, number)
        shown = list(order.due())
        assert shown == ([number - 10] if number >= 10 else [])
    assert list(order.rest()) == list(range(10, 20))


def test_a_clock_that_jumps_back_loses_nothing() -> None:
    order: TimeOrder[int] = TimeOrder(1, WINDOW_NS, 1000)
    for time_ns in (10**12, 10**9):
        order.reached(0, time_ns)
        order.add(time_ns, 0, 1, time_ns)
    assert [*order.due(), *order.rest()] == [10**9, 10**12]
