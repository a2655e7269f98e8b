"""What each simulated node knows of the others, and the routes in its kernel, on top of the leasing simulation. Deterministic for a seed.

    store --list, changes--> [delay; a batch twice; a stream that breaks] --in order--> membership, grace --view--> routes wanted
    routes wanted --diff--> [any operation may fail] --> the node's kernel, a set

As in an agent: one watcher a node, its events in order; a stream that breaks is followed by a listing; a pass after every event and every
second; what has failed is tried again with back-off. What the tests assert while it runs: see ``watch_routes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flanpy.core import grace, membership
from flanpy.core.codec import key_of
from flanpy.core.reconcile import Retries, apply, diff
from flanpy.errors import Compacted, StoreError
from flanpy.model import Address, NetworkConfig, RecordChange, RecordSet, Subnets
from tests.support.leasing_simulation import TTL_S, Node, Simulation

Entry = tuple[Subnets, Address]


@dataclass
class Mind:
    """What the agent of one node knows, and what its kernel has; the kernel outlives the agent."""

    members: membership.Membership | None = None
    kept: grace.Kept = field(default_factory=dict)
    cursor: int | None = None
    run: int = 0
    last_event_s: float = 0.0
    waiting: list[RecordSet | tuple[RecordChange, ...]] = field(default_factory=list)
    """The queue of the agent's loop: what has arrived and is not taken yet, for the agent is paused."""
    retries: Retries[Entry] = field(default_factory=Retries)
    kernel: frozenset[Entry] = frozenset()


class MembersSimulation(Simulation):
    """The leasing simulation with everybody's view of everybody."""

    def __init__(
        self, config: NetworkConfig, seed: int, rule: grace.Grace, *, lose: float = 0.0, twice: float = 0.2, fail: float = 0.2
    ) -> None:
        super().__init__(config, seed, delay_s=0.3, lose=lose)
        self.rule, self.twice, self.fail = rule, twice, fail
        self.minds: dict[str, Mind] = {}
        self.backup = self.server.backup()
        self.on_pass: Callable[[Node, frozenset[Entry], frozenset[Entry]], None] = lambda node, before, after: None

    def add(self, name: str, address: str, node_id: str | None = None) -> Node:
        self.minds[name] = Mind()
        node = super().add(name, address, node_id)
        self._look(node)
        self._tick_members(node)
        return node

    def start(self, node: Node) -> None:
        """A new agent knows nothing; the kernel has what the last one left."""
        old = self.minds[node.name]
        self.minds[node.name] = Mind(run=old.run + 1, kernel=old.kernel)
        super().start(node)

    def flush(self, node: Node) -> None:
        """Somebody removes all routes by hand."""
        self.minds[node.name].kernel = frozenset()

    def keep_backup(self) -> None:
        self.backup = self.server.backup()

    def wipe(self) -> None:
        """etcd is killed and comes back with nothing; every watch breaks."""
        super().wipe()
        self._break_watches()

    def restore(self) -> None:
        """etcd becomes what it was at the backup; every watch breaks."""
        self.server.restore(self.backup, TTL_S)
        self._break_watches()

    def _break_watches(self) -> None:
        for node in self.nodes:
            node.cursor = self.minds[node.name].cursor = None

    # ------------------------------------------------------------------------------------------------ the watcher

    def _look(self, node: Node) -> None:
        """One look at the store, then the next; a fault means a listing next time."""
        mind = self.minds[node.name]
        try:
            if node.cut or self.random.random() < self.lose / 4:
                mind.cursor = None
            else:
                self._read(node, mind)
        except (Compacted, StoreError):
            mind.cursor = None
        self._at(self.now_s + self.random.random(), lambda: self._look(node))

    def _read(self, node: Node, mind: Mind) -> None:
        if mind.cursor is None:
            listed = self.store.list("subnets/")
            mind.cursor = listed.revision + 1
            self._deliver(node, mind, listed)
            return
        with self.server.changed:
            changes, mind.cursor = self.server.changes_from("subnets/", mind.cursor)
        if changes:
            self._deliver(node, mind, changes)
            if self.random.random() < self.twice:
                self._deliver(node, mind, changes)

    def _deliver(self, node: Node, mind: Mind, event: RecordSet | tuple[RecordChange, ...]) -> None:
        """The event reaches the agent's loop some time later, never before an earlier one."""
        mind.last_event_s = when_s = max(mind.last_event_s, self.now_s + self.random.random() * self.delay_s)
        self._at(when_s, lambda: self._hear(node, mind, event))

    def _hear(self, node: Node, mind: Mind, event: RecordSet | tuple[RecordChange, ...]) -> None:
        if self.minds[node.name] is not mind:
            return  # the agent that it was for has ended
        mind.waiting.append(event)
        if not node.paused:
            self._take(node, mind)

    def _take(self, node: Node, mind: Mind) -> None:
        """All that waits, in the order of its arrival."""
        waiting, mind.waiting = mind.waiting, []
        for event in waiting:
            self._judge(node, mind, event)

    def _judge(self, node: Node, mind: Mind, event: RecordSet | tuple[RecordChange, ...]) -> None:
        before = mind.members
        if isinstance(event, RecordSet):
            mind.members = membership.from_records(event, before)
            own_key = None if node.held is None else key_of(node.held)
            mind.kept = grace.after_listing(mind.kept, before, mind.members, own_key, self.rule, self.now_s)
        elif before is not None:
            mind.members = membership.apply(before, event)
            mind.kept = grace.after_changes(mind.kept, before, mind.members, event, self.rule, self.now_s)
        self._pass(node)

    # ------------------------------------------------------------------------------------------------ a pass

    def _tick_members(self, node: Node) -> None:
        mind = self.minds[node.name]
        if not node.paused:
            self._take(node, mind)
        if mind.members is not None and not node.paused:
            mind.kept = grace.current(mind.kept, mind.members, self.now_s)
            self._pass(node)
        self._at(self.now_s + 1.0, lambda: self._tick_members(node))

    def wanted(self, node: Node) -> frozenset[Entry]:
        """The routes that the node should have by what it knows."""
        mind = self.minds[node.name]
        if mind.members is None or node.held is None:
            return mind.kernel
        seen = membership.view(mind.members, self.config, node.held, "udp", mind.kept)
        return frozenset((peer.subnets, peer.hop.address) for peer in seen.peers)

    def _pass(self, node: Node) -> None:
        mind, wanted = self.minds[node.name], self.wanted(node)
        change, before = diff(wanted, mind.kernel), mind.kernel
        todo = change.add | change.remove
        tried = mind.retries.due(todo, self.now_s)
        failed = frozenset(item for item in sorted(tried, key=str) if self.random.random() < self.fail)
        done = replace(change, add=(change.add & tried) - failed, remove=(change.remove & tried) - failed)
        mind.kernel = apply(done, before)
        mind.retries = mind.retries.failed(failed, self.now_s, self.random.random()).keep(diff(wanted, mind.kernel).add | failed)
        self.on_pass(node, before, mind.kernel)

    def routes_to_others(self, node: Node) -> frozenset[Entry]:
        """What the node's kernel should have in the end: every other node that holds a subnet."""
        return frozenset((other.held, other.address) for other in self.nodes if other is not node and other.held is not None)
