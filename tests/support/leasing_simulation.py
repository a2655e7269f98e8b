"""Several simulated nodes that lease from one memory store, under virtual time and faults; deterministic for a seed.

    node: leasing state machine --effect--> [delay] --> store at time t --> [delay, or the answer is lost] --> result --> node
          watch: a cursor into the store's history, read after a delay; a list when the history is gone

What the tests assert while it runs: whoever has heard from the store (a listing that it asked for, a write that succeeded)
and still holds a subnet is the one whom the store named at the moment that it answered.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from flanpy.core import leasing
from flanpy.core.codec import decode_lease, key_of
from flanpy.errors import CodecError, Compacted, StoreError
from flanpy.model import NetworkConfig, NodeAttributes, Record, Subnets
from flanpy.stores.memory import MemoryServer, MemoryStore

TIMEOUT_S = 5.0
TTL_S = 60
MARGIN_S = 20.0


@dataclass
class Node:
    """One node: its identity on disk, and the agent that runs on it, if any."""

    name: str
    address: IPv4Address
    node_id: str
    state: leasing.LeasingState | None = None
    run: int = 0
    paused: bool = False
    cut: bool = False
    cursor: int | None = None
    inbox: list[Callable[[], None]] = field(default_factory=list)
    said: list[leasing.Say] = field(default_factory=list)
    subnet_env: Subnets | None = None

    @property
    def held(self) -> Subnets | None:
        return self.state.held.subnets if self.state and self.state.held else None


class Simulation:
    """The cluster, its clock and its faults."""

    def __init__(self, config: NetworkConfig, seed: int = 0, delay_s: float = 0.05, lose: float = 0.0) -> None:
        self.now_s = 0.0
        self.config = config
        self.random = random.Random(seed)
        self.delay_s, self.lose = delay_s, lose
        self.server = MemoryServer(lambda: self.now_s)
        self.store = MemoryStore(self.server)
        self.nodes: list[Node] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._every_second()

    # ------------------------------------------------------------------------------------------------ the outside

    def add(self, name: str, address: str, node_id: str | None = None) -> Node:
        node = Node(name, IPv4Address(address), node_id or name)
        self.nodes.append(node)
        self.start(node)
        return node

    def start(self, node: Node) -> None:
        """(Re)start the agent; it knows what is on the disk and, unless the machine was rebooted, subnet.env."""
        node.run += 1
        node.paused, node.inbox, node.cursor = False, [], None
        identity = leasing.Identity(
            node.node_id, NodeAttributes(node.address), node.subnet_env, TTL_S, MARGIN_S, pick=self.random.randrange
        )
        node.state = leasing.initial(identity, self.config)
        self._feed(node, leasing.Tick())
        self._soon(node, lambda: self._watch(node))

    def stop(self, node: Node) -> None:
        node.run += 1
        node.state = None

    def reboot(self, node: Node) -> None:
        node.subnet_env = None
        self.start(node)

    def resume(self, node: Node) -> None:
        node.paused = False
        waiting, node.inbox = node.inbox, []
        for job in waiting:
            job()
        self._feed(node, leasing.Tick())

    def wipe(self) -> None:
        self.server.wipe()
        for node in self.nodes:
            node.cursor = None

    def advance(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, job = heapq.heappop(self._queue)
            job()
        self.now_s = until_s

    def advance_until(self, done: Callable[[], bool], limit_s: float) -> None:
        end_s = self.now_s + limit_s
        while not done():
            assert self.now_s < end_s, f"not reached within {limit_s} s"
            self.advance(0.1)

    # ------------------------------------------------------------------------------------------------ the inside

    def _at(self, when_s: float, job: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when_s, next(self._order), job))

    def _soon(self, node: Node, job: Callable[[], None], longest_s: float | None = None) -> None:
        """Run a job of this run of the node after a delay; while it is paused the job waits."""
        run = node.run

        def later() -> None:
            if node.run == run and node.paused:
                node.inbox.append(later)
            elif node.run == run:
                job()

        self._at(self.now_s + self.random.random() * (self.delay_s if longest_s is None else longest_s), later)

    def _every_second(self) -> None:
        self.server.tick()
        self._at(self.now_s + 1.0, self._every_second)

    def _feed(self, node: Node, event: leasing.Event) -> None:
        assert node.state is not None
        node.state, effects = leasing.step(node.state, event, self.now_s)
        if node.held is not None:
            node.subnet_env = node.held
        outstanding = [effect for effect in effects if not isinstance(effect, leasing.Say)]
        assert len(outstanding) <= 1
        node.said += [effect for effect in effects if isinstance(effect, leasing.Say)]
        for effect in outstanding:
            self._send(node, effect)
        self._arm(node)

    def _arm(self, node: Node) -> None:
        deadline_s = leasing.deadline(node.state) if node.state else None
        if deadline_s is not None:
            run = node.run
            self._at(max(deadline_s, self.now_s), lambda: self._tick(node, run))

    def _tick(self, node: Node, run: int) -> None:
        if node.run == run and not node.paused and node.state is not None:
            deadline_s = leasing.deadline(node.state)
            if deadline_s is not None and deadline_s <= self.now_s:
                self._feed(node, leasing.Tick())

    def _send(self, node: Node, effect: leasing.StoreEffect) -> None:
        """The request travels, is done, and the answer travels; either may be lost, and then a timeout answers."""
        answered = [False]
        fate = self.random.random()

        def answer(event: leasing.Event, names_us: bool | None = None) -> None:
            if not answered[0] and node.state is not None:
                answered[0] = True
                waited_for = getattr(node.state.phase, "effect", None) == effect  # the watcher's listing may have come first
                self._feed(node, event)
                if names_us is not None and waited_for:
                    self._check(node, names_us)

        def do() -> None:
            if node.cut:
                return
            try:
                event = self._do(effect)
            except StoreError as error:
                failed = leasing.Failed(str(error))
                self._soon(node, lambda: answer(failed))
                return
            owner = self._owner_of_held(node)
            if fate >= self.lose:
                heard = isinstance(event, leasing.Listed) or getattr(event, "record", None) is not None
                self._soon(node, lambda: answer(event, owner if heard else None))

        if fate < self.lose / 2:  # lost on the way there, or done long after the timeout
            self._at(self.now_s + 2 * TIMEOUT_S, do) if fate < self.lose / 4 else None
        else:
            self._at(self.now_s + self.random.random() * self.delay_s, do)
        self._soon_at(node, TIMEOUT_S, lambda: answer(leasing.Failed("timed out")))

    def _soon_at(self, node: Node, seconds: float, job: Callable[[], None]) -> None:
        self._at(self.now_s + seconds, lambda: self._soon(node, job, 0.0))

    def _do(self, effect: leasing.StoreEffect) -> leasing.Event:
        match effect:
            case leasing.List():
                return leasing.Listed(self.store.list("subnets/"))
            case leasing.Create(key, value, ttl_s):
                return leasing.Created(self.store.create(key, value, ttl_s))
            case leasing.Replace(key, value, expected, ttl_s):
                return leasing.Replaced(self.store.replace(key, value, expected, ttl_s))
            case leasing.Delete(key, expected):
                return leasing.Deleted(self.store.delete(key, expected))

    def _watch(self, node: Node) -> None:
        """One look at the history, as the watcher does it: list first, then changes from the next revision on."""
        try:
            if not node.cut:
                self._watch_once(node)
        except Compacted:
            node.cursor = None
        except StoreError:
            node.cursor = node.cursor if self.random.random() < 0.5 else None
        self._soon(node, lambda: self._watch(node), 1.0)

    def _watch_once(self, node: Node) -> None:
        if node.cursor is None:
            listed = self.store.list("subnets/")
            node.cursor = listed.revision + 1
            self._soon(node, lambda: self._feed(node, leasing.Listed(listed)))
            return
        with self.server.changed:
            changes, node.cursor = self.server.changes_from("subnets/", node.cursor)
        if changes:
            self._soon(node, lambda: self._feed(node, leasing.Changed(changes)))

    # ------------------------------------------------------------------------------------------------ what must hold

    def _owner_of_held(self, node: Node) -> bool:
        """Whether the store, asked now, does not give the node's subnet to another node."""
        record = None if node.held is None else self._record(node.held)
        return record is None or self._names(record, node)

    def _check(self, node: Node, named: bool) -> None:
        assert node.held is None or named, f"{node.name} still holds {node.held} after the store gave it to another"

    def _record(self, subnets: Subnets) -> Record | None:
        with self.server.changed:
            return self.server._records.get(key_of(subnets))

    def _names(self, record: Record, node: Node) -> bool:
        try:
            info = decode_lease(record).attributes.flanpy
        except CodecError:
            return False
        return info is not None and info.node == node.node_id

    def holders_in_store(self) -> dict[str, Subnets]:
        """name -> subnet of every node, as the store has it."""
        return {
            node.name: node.held
            for node in self.nodes
            if node.held and (record := self._record(node.held)) and self._names(record, node)
        }

    def delete_lease(self, node: Node) -> None:
        """An operator deletes the key of the subnet that the node believes to hold."""
        if node.held is not None:
            with self.server.changed:
                self.server.delete(key_of(node.held), None) if not self.server._fault else None
