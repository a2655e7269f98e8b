"""Answers of a datapath process, whatever they are: believed only when whole, and no descriptor that came with them is left open."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flanpy.datapath import process_wire
from flanpy.datapath.core import VERDICTS, WORK_COUNTERS, ffi, lib
from flanpy.datapath.process_wire import REPLY_TIMEOUT_S, Connection, Slow, State, Unresponsive, _sorted
from flanpy.datapath.sockets import UnderlaySockets
from flanpy.errors import FlanpyError

HELLO = 1
BYTES = ffi.sizeof("struct fp_message_state")
SETTINGS_AT = ffi.offsetof("struct fp_message_state", "settings")
OTHER_VERSION = "datapath process 1: it is of another version of flanpy; run `make build` in the checkout, or install flanpy anew"
NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1))


def good(queues: int, table_bytes: int) -> Any:
    """What a running process of this build answers to HELLO."""
    state = ffi.new("struct fp_message_state *")
    head = state.head
    head.magic, head.version, head.kind, head.bytes = (
        lib.FP_PROTOCOL_MAGIC,
        lib.FP_PROTOCOL_VERSION,
        HELLO | lib.FP_MESSAGE_REPLY,
        BYTES,
    )
    state.state, state.n_queues, state.n_pages, state.confined = lib.FP_PROCESS_RUNNING, queues, 2 * queues, 15
    state.settings_bytes, state.table_bytes = ffi.sizeof("struct fp_settings"), table_bytes
    state.page_bytes, state.n_verdicts, state.n_work = lib.fp_page_bytes(), len(VERDICTS), len(WORK_COUNTERS)
    return state


def answered(reply: bytes, fds: int) -> tuple[State | FlanpyError, int]:
    """What hello() makes of this answer with so many descriptors, and how many of them are open when it and the state are done with."""
    null = os.open(os.devnull, os.O_RDONLY)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(list(Path("/proc/self/fd").iterdir()))
    outcome: State | FlanpyError
    try:
        if reply:
            socket.send_fds(theirs, [reply], [null] * fds)
        else:
            theirs.shutdown(socket.SHUT_RDWR)
        try:
            outcome = Connection(ours, 1).hello(1.0)
            assert len(set(outcome.fds)) == len(outcome.fds) == fds
            outcome.close()
        except FlanpyError as error:
            outcome = error
        return outcome, len(list(Path("/proc/self/fd").iterdir())) - before
    finally:
        ours.close()
        theirs.close()
        os.close(null)


@settings(max_examples=150, deadline=None)
@given(
    queues=NUMBERS,
    table_bytes=NUMBERS,
    fds=st.integers(0, 40),
    bytes_=st.one_of(st.just(BYTES), st.integers(1, BYTES + 40)),
    changes=st.lists(st.tuples(st.integers(0, BYTES - 1), st.integers(0, 255)), max_size=3),
)
@example(queues=1, table_bytes=7, fds=34, bytes_=BYTES, changes=[])
@example(queues=1, table_bytes=0, fds=2, bytes_=BYTES, changes=[])
@example(queues=0, table_bytes=0, fds=1, bytes_=BYTES, changes=[])
@example(queues=2, table_bytes=0, fds=4, bytes_=BYTES, changes=[])
@example(queues=1, table_bytes=0, fds=3, bytes_=SETTINGS_AT - 1, changes=[])
def test_any_answer_is_a_state_or_an_error_and_leaves_nothing_open(
    queues: int, table_bytes: int, fds: int, bytes_: int, changes: list[tuple[int, int]]
) -> None:
    state = good(0, table_bytes)
    state.n_queues, state.head.bytes = queues, bytes_
    reply = bytearray(bytes(ffi.buffer(state)).ljust(bytes_, b"\0")[:bytes_])
    for place, value in changes:
        reply[place % bytes_] = value
    assert answered(bytes(reply), fds)[1] == 0


@settings(max_examples=100, deadline=None)
@given(reply=st.binary(max_size=300), fds=st.integers(0, 40))
def test_garbage_is_an_error_and_leaves_nothing_open(reply: bytes, fds: int) -> None:
    outcome, left = answered(reply, fds)
    assert (isinstance(outcome, FlanpyError), left) == (True, 0)


@given(queues=st.integers(1, 3), lanes=st.integers(1, 10), table_bytes=st.integers(0, 1))
def test_all_lanes_of_all_queues_are_found_again(queues: int, lanes: int, table_bytes: int) -> None:
    outcome, left = answered(bytes(ffi.buffer(good(queues, table_bytes))), queues * (1 + lanes) + 1 + table_bytes)
    assert isinstance(outcome, State)
    assert left == 0
    assert (outcome.running, outcome.confined, outcome.pages_fit, outcome.table_bytes) == (True, 15, True, table_bytes)


def test_sockets_come_back_in_the_order_in_which_they_were_given() -> None:
    """By queue on the wire; lane by lane in ``UnderlaySockets``: the order in which they were bound is the kernel's."""
    underlay = UnderlaySockets(tuple(socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(6)), 1, False, ())
    try:
        tuns = (1001, 1002)
        wire = [fd for tun, lanes in zip(tuns, underlay.lanes(2), strict=True) for fd in (tun, *lanes)]
        assert _sorted([*wire, 1003, 1004], 2, 1) == (tuns, underlay.fds, [1003, 1004])
    finally:
        underlay.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.EPROTO, OTHER_VERSION),
        (errno.EPROTONOSUPPORT, OTHER_VERSION),
        (errno.EINVAL, "datapath process 1: Invalid argument (EINVAL)"),
    ],
)
def test_a_process_of_another_version_is_told_from_other_refusals(error: int, said: str) -> None:
    state = good(0, 0)
    state.head.error = -error
    outcome, _ = answered(bytes(ffi.buffer(state)), 0)
    assert str(outcome) == said


class Silence:
    """A clock, and a socket on which nothing comes: each wait takes as long as it may."""

    def __init__(self) -> None:
        self.now_s = self.timeout_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def fileno(self) -> int:
        return 0

    def settimeout(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def sendmsg(self, *_: object) -> None:
        pass

    def recvmsg(self, *_: object) -> None:
        self.now_s += self.timeout_s
        raise TimeoutError


def test_a_silent_process_is_waited_for_no_longer_than_it_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between the looks count, up to LOOK_S each, and the last wait ends with the time that is left."""
    silence: Any = Silence()
    monkeypatch.setattr(process_wire, "time", silence)
    connection = Connection(silence, 1)
    for pause_s, counted_s in ((0.0, 0.9), (0.2, 2.0), (60.0, 3.0)):
        silence.now_s += pause_s
        before_s = silence.now_s
        with pytest.raises(Unresponsive if pause_s == 60 else Slow):
            connection.hello(0.9)
        assert connection.silent_s == pytest.approx(counted_s)
    assert silence.now_s == before_s, "nothing is waited for when the time is over"


def test_the_last_wait_takes_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    silence: Any = Silence()
    monkeypatch.setattr(process_wire, "time", silence)
    with pytest.raises(Unresponsive):
        Connection(silence, 1).hello(60)
    assert silence.now_s == pytest.approx(REPLY_TIMEOUT_S)
