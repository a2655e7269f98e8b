"""Probes of the paths to peers: packets whole, the words for a path, a virtual clock; what strangers send changes nothing."""

import itertools
import random
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.peer_probes import (
    ANSWERS_PER_S,
    DOWN_AFTER,
    PROBE_BYTES,
    RATE_MAX,
    RETRY_S,
    WAIT_S,
    PeerHealth,
    PeerProbes,
    Send,
    Target,
    probe_port,
)
from flanpy.model import Address

PEER, OTHER = ip_address("10.244.8.0"), ip_address("10.244.9.0")
PORT = 8286
INTERVAL_S = 10.0


def target(address: Address, port: int = PORT) -> Target:
    return Target(address, port, ip_address("172.31.9.2"))


def probes(*addresses: Address, interval_s: float = INTERVAL_S) -> PeerProbes:
    numbers = itertools.count(1)
    found = PeerProbes(interval_s, lambda: next(numbers).to_bytes(8, "big"))
    found.aim({address: target(address) for address in addresses}, 0.0)
    return found


def request(sequence: int = 1, nonce: int = 1, kind: int = 1) -> bytes:
    return b"flPP\x01" + bytes((kind, 0, 0)) + sequence.to_bytes(4, "big") + nonce.to_bytes(8, "big")


def test_a_probe_is_twenty_bytes_and_its_answer_the_same_with_another_kind() -> None:
    asking, answering = probes(PEER), probes(PEER)
    assert asking.due(0.0) == [Send(PEER, PORT, request(1, 1))]
    assert answering.receive(PEER, PORT, request(1, 1), 0.0) == Send(PEER, PORT, request(1, 1, kind=2))
    assert asking.receive(PEER, PORT, request(1, 1, kind=2), 0.25) is None
    assert asking.health() == {PEER: PeerHealth("ok", 0.25, 0.25, 0.0, 1, 0)}
    assert answering.health() == {PEER: PeerHealth("unknown", None, 0.0, 0.0, 0, 0)}


def test_whoever_is_asked_is_seen_alive_by_its_own_requests_too() -> None:
    found = probes(PEER)
    found.receive(PEER, PORT, request(9, 9), 3.0)
    assert found.health()[PEER].last_seen_s == 3.0


@pytest.mark.parametrize(
    ("address", "port", "data"),
    [
        (OTHER, PORT, request()),
        (PEER, PORT + 1, request()),
        (PEER, PORT, b""),
        (PEER, PORT, request()[:-1]),
        (PEER, PORT, request() + b"\0"),
        (PEER, PORT, b"x" + request()[1:]),
        (PEER, PORT, request()[:4] + b"\x02" + request()[5:]),
        (PEER, PORT, request(kind=0)),
        (PEER, PORT, request(kind=3)),
        (PEER, PORT, request()[:7] + b"\x01" + request()[8:]),
    ],
    ids=["stranger", "port", "empty", "short", "long", "magic", "version", "kind 0", "kind 3", "reserved"],
)
def test_what_is_no_probe_of_a_peer_has_no_answer_and_changes_nothing(address: Address, port: int, data: bytes) -> None:
    found = probes(PEER)
    assert found.receive(address, port, data, 0.0) is None
    assert found.health() == {PEER: PeerHealth("unknown", None, None, 0.0, 0, 0)}


@pytest.mark.parametrize(("sequence", "nonce"), [(1, 2), (2, 1), (0, 0)])
def test_an_answer_to_another_question_is_none(sequence: int, nonce: int) -> None:
    found = probes(PEER)
    found.due(0.0)
    found.receive(PEER, PORT, request(sequence, nonce, kind=2), 0.1)
    assert found.health()[PEER].rtt_s is None


def test_an_answer_counts_once_and_not_after_its_time() -> None:
    found = probes(PEER)
    found.due(0.0)
    found.due(WAIT_S)
    found.receive(PEER, PORT, request(1, 1, kind=2), WAIT_S + 0.1)
    assert (found.health()[PEER].rtt_s, found.health()[PEER].lost) == (None, 1)


def test_a_peer_that_asks_too_often_is_answered_a_few_times_a_second() -> None:
    found = probes(PEER, OTHER)
    answers = [found.receive(PEER, PORT, request(number, 1), 5.0 + number / 1000) for number in range(100)]
    assert sum(answer is not None for answer in answers) == ANSWERS_PER_S
    assert found.receive(OTHER, PORT, request(), 5.1) is not None
    assert found.receive(PEER, PORT, request(), 6.1) is not None


def run(found: PeerProbes, until_s: float, *, answered: bool, start_s: float = 0.0) -> list[float]:
    """Let the clock run from turn to turn; the moments at which probes were sent."""
    sent: list[float] = []
    now_s = start_s
    while (turn_s := found.deadline_s()) is not None and turn_s <= until_s:
        now_s = max(now_s, turn_s)
        for packet in found.due(now_s):
            sent.append(now_s)
            if answered:
                found.receive(packet.address, packet.port, packet.payload[:5] + b"\x02" + packet.payload[6:], now_s + 0.001)
    return sent


def test_a_path_that_works_is_asked_once_an_interval() -> None:
    found = probes(PEER)
    assert run(found, 35.0, answered=True) == [0.0, 10.0, 20.0, 30.0]
    health = found.health()[PEER]
    assert (health.word, health.loss, health.sent, health.lost) == ("ok", 0.0, 4, 0)


def test_a_path_that_falls_silent_is_down_within_seconds_and_asked_at_the_old_pace_then() -> None:
    found = probes(PEER)
    run(found, 0.0, answered=True)
    sent = run(found, 60.0, answered=False, start_s=0.1)
    assert sent[0] == 10.0
    assert sent[DOWN_AFTER - 1] == 10.0 + (DOWN_AFTER - 1) * (WAIT_S + RETRY_S)
    assert [late - early for early, late in itertools.pairwise(sent[-3:])] == [INTERVAL_S, INTERVAL_S]
    assert found.health()[PEER].word == "path down"
    assert found.down() == [target(PEER)]


def test_an_answer_lifts_a_path_that_was_down() -> None:
    found = probes(PEER)
    run(found, 0.0, answered=True)
    run(found, 20.0, answered=False, start_s=0.1)
    assert found.health()[PEER].word == "path down"
    run(found, 40.0, answered=True, start_s=20.1)
    assert (found.health()[PEER].word, found.health()[PEER].loss, found.down()) == ("ok", 0.0, [])


def test_single_losses_make_a_path_lossy_until_they_are_long_ago() -> None:
    found = probes(PEER)
    run(found, 0.0, answered=True)
    run(found, 10.0, answered=False, start_s=0.1)
    run(found, 20.0, answered=True, start_s=10.1)
    early = found.health()[PEER]
    assert (early.word, early.loss, early.lost) == ("ok", 0.0, 1), "one of three says nothing yet"
    run(found, 60.0, answered=True, start_s=20.1)
    assert (found.health()[PEER].word, found.health()[PEER].lost) == ("lossy", 1)
    run(found, 400.0, answered=True, start_s=60.1)
    assert (found.health()[PEER].word, found.health()[PEER].lost) == ("ok", 1)


@pytest.mark.parametrize(("answers", "word"), [(True, "path down"), (False, "node down")])
def test_the_underlay_tells_a_dead_path_from_a_dead_node(answers: bool, word: str) -> None:
    found = probes(PEER)
    run(found, 30.0, answered=False)
    found.underlay(PEER, answers=answers)
    assert found.health()[PEER].word == word


def test_a_refused_probe_says_that_only_the_agent_is_away() -> None:
    found = probes(PEER)
    now_s = 0.0
    for _ in range(DOWN_AFTER):
        now_s = max(now_s, found.deadline_s() or 0.0)
        assert found.due(now_s)
        found.refused(PEER, now_s + 0.01)
    assert (found.health()[PEER].word, found.down()) == ("no agent", [])
    found.refused(OTHER, now_s)


def test_many_peers_are_spread_and_never_asked_faster_than_the_bound() -> None:
    crowd = [ip_address(int(IPv4Address("10.0.0.0")) + 256 * number) for number in range(1000)]
    sent = run(probes(*crowd), 200.0, answered=True)
    assert len([at for at in sent if 100 <= at < 150]) == pytest.approx(50 * RATE_MAX, rel=0.05)
    assert len([at for at in sent if at < 2.0]) <= 210


def test_what_is_known_of_a_peer_stays_when_others_come_and_go() -> None:
    found = probes(PEER)
    run(found, 0.0, answered=True)
    found.aim({PEER: target(PEER), OTHER: target(OTHER)}, 1.0)
    assert found.health()[PEER].word == "ok"
    found.aim({OTHER: target(OTHER)}, 2.0)
    assert set(found.health()) == {OTHER}
    found.aim({}, 3.0)
    assert (found.deadline_s(), found.due(99.0)) == (None, [])


@given(
    st.binary(max_size=40) | st.builds(request, st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)), st.integers(0, 70000)
)
def test_no_packet_makes_us_say_more_than_it_says(data: bytes, port: int) -> None:
    found = probes(PEER)
    found.due(0.0)
    answer = found.receive(PEER, port, data, 0.5)
    assert answer is None or (len(answer.payload) == len(data) == PROBE_BYTES and (answer.address, answer.port) == (PEER, PORT))


@pytest.mark.parametrize("seed", range(20))
def test_no_history_of_events_breaks_the_books(seed: int) -> None:
    """Peers come and go, packets are answered, lost, refused, forged: sent = lost + answered + at most one that is out."""
    rng = random.Random(seed)
    crowd = [ip_address(int(IPv4Address("10.0.0.0")) + 256 * number) for number in range(6)]
    found, now_s, out = probes(*crowd[:3]), 0.0, list[Send]()
    for _ in range(400):
        now_s += rng.random() * 3
        match rng.randrange(5):
            case 0:
                found.aim({address: target(address) for address in rng.sample(crowd, rng.randrange(7))}, now_s)
            case 1 if out:
                packet = out.pop(rng.randrange(len(out)))
                found.receive(packet.address, packet.port, packet.payload[:5] + b"\x02" + packet.payload[6:], now_s)
            case 2:
                found.refused(rng.choice(crowd), now_s)
            case 3:
                found.underlay(rng.choice(crowd), answers=rng.random() < 0.5)
        out += found.due(now_s)
        for health in found.health().values():
            assert 0 <= health.lost <= health.sent
            assert 0.0 <= health.loss <= 1.0
        assert (turn_s := found.deadline_s()) is None or turn_s > now_s


@pytest.mark.parametrize(
    ("features", "port"),
    [
        ({"ecn"}, None),
        ({"ecn", "probe-8286"}, 8286),
        ({"probe-"}, None),
        ({"probe-0"}, None),
        ({"probe-65536"}, None),
        ({"probe-65535"}, 65535),
        ({"probe-١"}, None),
        ({"probe-8286x"}, None),
    ],
)
def test_a_lease_tells_the_port_or_that_nobody_answers(features: set[str], port: int | None) -> None:
    assert probe_port(frozenset(features)) == port
