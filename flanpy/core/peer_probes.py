"""Do the paths to our peers carry packets? Probes and answers between agents over the overlay; no I/O, no clock, no randomness.

    probe     20 bytes of UDP, from tunnel address to tunnel address, from and to the port that the leases tell (feature probe-PORT)

              "flPP" | version 1 | kind 1 request, 2 answer | 0 0 | sequence u32 | nonce 8 bytes        network byte order

An answer is the request with another kind: as long as it, so nobody gains by making us answer a third party. Requests are taken from the
tunnel addresses and ports of known peers only, a few a second from each; an answer only from whom was asked, with the nonce of what was
asked last. What does not fit is passed over without a word. Nothing here ever takes a route away: a silent path is told, not judged.

A peer is asked every ``interval_s``, at moments spread over it; in a large cluster less often, for we send at most ``RATE_MAX`` a second.
After a loss the next ones follow quickly, so that a path is known to be down within seconds.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flanpy.model import Address

_PACKET = struct.Struct("!4sBBHI8s")
PROBE_BYTES = _PACKET.size
NONCE_BYTES = 8
_MAGIC, _VERSION, _REQUEST, _ANSWER = b"flPP", 1, 1, 2
FEATURE = "probe-"
"""What a lease says of a node that answers: this, and the port."""

RATE_MAX = 20.0
"""Probes a second at most, whatever the size of the cluster."""
WAIT_S = 1.0
"""A probe that has no answer after this long is lost."""
RETRY_S = 0.5
DOWN_AFTER = 3
"""So many losses in a row make a path one that is down."""
ANSWERS_PER_S = 5
"""Requests of one peer that are answered within a second."""
REMEMBERED = 20
"""Outcomes that the loss is reckoned from, at most; it begins anew when a path has been down."""

JUDGED_FROM = 5
"""Fewer outcomes make no path lossy: one loss of two says nothing yet."""

Word = Literal["unknown", "ok", "lossy", "no agent", "path down", "node down"]
"""``no agent``: packets get there, and nobody answers; ``path down``: only the node's own address answers; ``node down``: neither does."""


@dataclass(frozen=True, slots=True)
class Target:
    """A peer to ask: its tunnel address and port, and its underlay address, which tells a dead path from a dead node."""

    address: Address
    port: int
    underlay: Address


@dataclass(frozen=True, slots=True)
class Send:
    """A packet to be sent."""

    address: Address
    port: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """What is known of the path to one peer. Times are those of the caller's clock, seconds; None: never."""

    word: Word
    rtt_s: float | None
    last_seen_s: float | None
    loss: float
    """Share of the last probes that were lost, 0 to 1; of fewer than ``JUDGED_FROM`` too early to tell, and 0."""
    sent: int
    lost: int


@dataclass(slots=True)
class _Path:
    target: Target
    due_s: float
    turn_s: float = 0.0
    """When it is this path's turn next: a probe to send, or one to give up."""
    sequence: int = 0
    nonce: bytes = b""
    asked_s: float | None = None
    """When the probe that is out was sent; None when none is."""
    rtt_s: float | None = None
    last_seen_s: float | None = None
    outcomes: list[bool] = field(default_factory=list)
    sent: int = 0
    lost: int = 0
    lost_in_a_row: int = 0
    refused: bool = False
    node_answers: bool | None = None
    window_s: float = 0.0
    answers: int = 0


class PeerProbes:
    """All paths. Not for several threads at a time."""

    def __init__(self, interval_s: float, nonce: Callable[[], bytes]) -> None:
        self._interval_s = interval_s
        self._nonce = nonce
        self._paths: dict[Address, _Path] = {}
        self._turns: list[tuple[float, int, Address]] = []
        """A heap: moment, IP version (so that addresses compare), address. An entry that is not its path's ``turn_s`` is stale."""
        self._down: set[Address] = set()

    def aim(self, targets: Mapping[Address, Target], now_s: float) -> None:
        """Ask these from now on; what is known of those that stay is kept. New ones begin spread over the interval."""
        for gone in self._paths.keys() - targets.keys():
            del self._paths[gone]
            self._down.discard(gone)
        fresh = [target for address, target in targets.items() if address not in self._paths]
        for address, path in self._paths.items():
            path.target = targets[address]
        first_s = min(self._interval_s, 1.0 + len(fresh) / RATE_MAX) if fresh else 0.0
        for number, target in enumerate(fresh):
            path = self._paths[target.address] = _Path(target, now_s + first_s * number / len(fresh))
            self._schedule(path)

    def due(self, now_s: float) -> list[Send]:
        """What is to be sent now; counts as lost what has waited too long."""
        period_s = max(self._interval_s, len(self._paths) / RATE_MAX)
        packets = []
        while (turn := self._next()) is not None and turn.turn_s <= now_s:
            heapq.heappop(self._turns)
            if turn.asked_s is not None:
                self._lose(turn, now_s)
            else:
                turn.due_s = now_s + period_s
                packets.append(self._ask(turn, now_s))
        return packets

    def deadline_s(self) -> float | None:
        """When ``due`` should be called next; None while there is nobody to ask."""
        turn = self._next()
        return None if turn is None else turn.turn_s

    def _next(self) -> _Path | None:
        """Whose turn is next; stale entries of the heap go."""
        while self._turns:
            at_s, _, address = self._turns[0]
            path = self._paths.get(address)
            if path is not None and path.turn_s == at_s:
                return path
            heapq.heappop(self._turns)
        return None

    def _schedule(self, path: _Path) -> None:
        path.turn_s = path.due_s if path.asked_s is None else path.asked_s + WAIT_S
        heapq.heappush(self._turns, (path.turn_s, path.target.address.version, path.target.address))

    def _ask(self, path: _Path, now_s: float) -> Send:
        path.sequence = (path.sequence + 1) & 0xFFFFFFFF
        path.nonce, path.asked_s = self._nonce(), now_s
        path.sent += 1
        self._schedule(path)
        payload = _PACKET.pack(_MAGIC, _VERSION, _REQUEST, 0, path.sequence, path.nonce)
        return Send(path.target.address, path.target.port, payload)

    def _lose(self, path: _Path, now_s: float) -> None:
        path.asked_s, path.refused = None, False
        path.lost += 1
        path.lost_in_a_row += 1
        if path.rtt_s is not None:  # before the first answer a peer is starting, not losing
            self._remember(path, answered=False)
        if path.lost_in_a_row <= DOWN_AFTER:
            path.due_s = min(path.due_s, now_s + RETRY_S)
        if path.lost_in_a_row >= DOWN_AFTER:
            self._down.add(path.target.address)
        self._schedule(path)

    @staticmethod
    def _remember(path: _Path, *, answered: bool) -> None:
        path.outcomes = [*path.outcomes, answered][-REMEMBERED:]

    # ------------------------------------------------------------------------------------------------ what comes in

    def receive(self, address: Address, port: int, data: bytes, now_s: float) -> Send | None:
        """A packet from this address and port: the answer that it deserves, if any."""
        path = self._paths.get(address)
        if path is None or port != path.target.port or len(data) != PROBE_BYTES:
            return None
        magic, version, kind, reserved, sequence, nonce = _PACKET.unpack(data)
        if (magic, version, reserved) != (_MAGIC, _VERSION, 0):
            return None
        if kind == _REQUEST:
            return self._answer(path, sequence, nonce, now_s)
        if kind == _ANSWER:
            self._answered(path, sequence, nonce, now_s)
        return None

    def _answer(self, path: _Path, sequence: int, nonce: bytes, now_s: float) -> Send | None:
        if now_s - path.window_s >= 1.0:
            path.window_s, path.answers = now_s, 0
        path.answers += 1
        if path.answers > ANSWERS_PER_S:
            return None
        path.last_seen_s = now_s
        payload = _PACKET.pack(_MAGIC, _VERSION, _ANSWER, 0, sequence, nonce)
        return Send(path.target.address, path.target.port, payload)

    def _answered(self, path: _Path, sequence: int, nonce: bytes, now_s: float) -> None:
        if path.asked_s is None or (sequence, nonce) != (path.sequence, path.nonce):
            return
        path.rtt_s, path.last_seen_s, path.asked_s = now_s - path.asked_s, now_s, None
        if path.lost_in_a_row >= DOWN_AFTER:
            path.outcomes = []  # the outage has been told; the loss is that of the path as it is now
        path.lost_in_a_row, path.refused, path.node_answers = 0, False, None
        self._remember(path, answered=True)
        self._down.discard(path.target.address)
        self._schedule(path)

    def refused(self, address: Address, now_s: float) -> None:
        """The peer's kernel has said that nobody has the port: the path works."""
        path = self._paths.get(address)
        if path is not None and path.asked_s is not None:
            self._lose(path, now_s)
            path.refused, path.last_seen_s = True, now_s

    def underlay(self, address: Address, *, answers: bool) -> None:
        """What became of asking the node's own address, which is done while its path is down."""
        path = self._paths.get(address)
        if path is not None:
            path.node_answers = answers

    # ------------------------------------------------------------------------------------------------ what is known

    def down(self) -> list[Target]:
        """Peers whose path is down."""
        return [self._paths[address].target for address in self._down if not self._paths[address].refused]

    def health(self) -> dict[Address, PeerHealth]:
        """What is known of each peer, by its tunnel address."""
        return dict(self._healths())

    def _healths(self) -> Iterator[tuple[Address, PeerHealth]]:
        for address, path in self._paths.items():
            lost = path.outcomes.count(False) / len(path.outcomes) if len(path.outcomes) >= JUDGED_FROM else 0.0
            yield address, PeerHealth(_word(path), path.rtt_s, path.last_seen_s, lost, path.sent, path.lost)


def _word(path: _Path) -> Word:
    if path.lost_in_a_row >= DOWN_AFTER:
        if path.refused:
            return "no agent"
        return "path down" if path.node_answers else "node down" if path.node_answers is False else "path down"
    if not any(path.outcomes):
        return "unknown"
    return "lossy" if False in path.outcomes and len(path.outcomes) >= JUDGED_FROM else "ok"


def probe_port(features: frozenset[str]) -> int | None:
    """The port that a lease's features tell, None when the node answers no probes or tells nonsense."""
    texts = [name.removeprefix(FEATURE) for name in features if name.startswith(FEATURE)]
    ports = [int(text) for text in texts if re.fullmatch(r"[0-9]{1,5}", text)]
    return min((port for port in ports if 0 < port < 65536), default=None)
