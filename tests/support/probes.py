"""Probes: numbered datagrams between pods, 1,000 a second in each direction, while something is broken.

    with probes(cluster) as stream:                 # host1-pod1 <-> host2-pod1
        cluster.lab.stop_agent("host1", signal.SIGKILL)
        stream.wait(500)                            # until 500 more have been sent
    assert stream.losses == ()                      # else: which link has lost how many, and when by the clock of the agents' logs

The sender and the receiver are one process of their own (probe_stream.py), so neither the test nor what it waits for slows them.
After the block all that were sent have had time to arrive.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.support.clusters import Cluster, eventually
from tests.support.evidence import evidence
from tests.support.namespaces import Namespace

RATE_PER_S = 1000
"""On each link; shared/reliability.md asks for at least so many in all."""
ARRIVE_S = 2.0
"""How long a probe may be on its way after the last one was sent."""
LOST_SHOWN = 8
"""Numbers of lost probes that a message has."""
STREAM = Path(__file__).with_name("probe_stream.py")


@dataclass(frozen=True, slots=True)
class Count:
    """What became of the probes of one link, or of all: ``lost`` were sent and have not come, ``longest_gap_s`` between two arrivals.

    ``lost_from_s`` is when the first that is lost was sent, by the clock of the day.
    """

    sent: int
    received: int
    refused: int
    duplicates: int
    reordered: int
    longest_gap_s: float
    lost: int
    first_lost: tuple[int, ...] = ()
    lost_from_s: float = 0.0

    @property
    def words(self) -> str:
        """For the table of docs/reliability.md."""
        if not self.lost:
            return f"0 of {self.sent:,} probes lost"
        return f"{self.lost:,} of {self.sent:,} probes lost, longest gap {self.longest_gap_s * 1e3:.0f} ms"


class Probes:
    """A running stream; ``links`` counts each link after the block, in the order given."""

    def __init__(self, process: subprocess.Popen[str], names: Sequence[str], explain: Callable[[], str] = str) -> None:
        """``names`` of the links; ``explain``: what to show of the network when probes do not arrive."""
        self._process = process
        self._names = tuple(names)
        self._explain = explain
        self._backlog = backlog_drops()
        self.links: tuple[Count, ...] = ()

    def look(self, word: str = "report") -> tuple[Count, ...]:
        """Every link as it is now."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        assert line, f"the probe stream has ended: {self._process.stderr.read() if self._process.stderr else ''}"
        self.links = tuple(Count(**{**item, "first_lost": tuple(item["first_lost"])}) for item in json.loads(line))
        return self.links

    def wait(self, more: int, within_s: float = 60) -> None:
        """Until so many more probes have been sent on every link."""
        goals = [count.sent + more for count in self.look()]
        eventually(
            lambda: all(count.sent >= goal for count, goal in zip(self.look(), goals, strict=True)),
            within_s,
            f"{more} more probes",
        )

    def flow(self, more: int = 50, within_s: float = 10) -> float:
        """Until so many more have arrived on every link: the path works (again). Seconds that took."""
        started = time.monotonic()
        goals = [count.received + more for count in self.look()]
        try:
            eventually(
                lambda: all(count.received >= goal for count, goal in zip(self.look(), goals, strict=True)),
                within_s,
                "probes arrive",
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.losses}\n{self._explain()}") from None
        return time.monotonic() - started

    def end(self) -> None:
        """End the sending, and wait until everything has come or had its time to."""
        self.look("stop")
        deadline = time.monotonic() + ARRIVE_S
        while any(count.lost for count in self.look()) and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def losses(self) -> tuple[str, ...]:
        """A line for each link that has lost probes; () when all have come."""
        assert self.links, "no probe was counted yet"
        dropped = backlog_drops() - self._backlog
        cause = f"; meanwhile this machine's CPUs had no room for {dropped} packets of anybody (softnet_stat)" if dropped else ""
        named = zip(self._names, self.links, strict=True)
        return tuple(f"{name}: {_lost(count)}{cause}" for name, count in named if count.lost)

    @property
    def total(self) -> Count:
        """All links as one; the gap is the longest of any."""
        assert self.links, "no probe was counted yet"
        sums = {name: sum(getattr(count, name) for count in self.links) for name in ("sent", "received", "refused")}
        more = {name: sum(getattr(count, name) for count in self.links) for name in ("duplicates", "reordered", "lost")}
        return Count(**sums, **more, longest_gap_s=max(count.longest_gap_s for count in self.links))


def _lost(count: Count) -> str:
    at = f"{datetime.fromtimestamp(count.lost_from_s, UTC):%H:%M:%S.%f}"[:-3] + "Z"
    numbers = f"numbers {', '.join(map(str, count.first_lost[:LOST_SHOWN]))}{' ...' if count.lost > LOST_SHOWN else ''}"
    refused = f"; {count.refused} refused by the sender's own kernel" if count.refused else ""
    return f"{count.words}, from {at} on: {numbers}{refused}"


def backlog_drops() -> int:
    """Packets that this machine has dropped because a CPU's queue between two devices was full (net.core.netdev_max_backlog)."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines())


@contextmanager
def probes(
    cluster: Cluster, links: Sequence[tuple[str, str]] | None = None, rate_per_s: int = RATE_PER_S, flowing: bool = True
) -> Iterator[Probes]:
    """Probes between pods of a lab for the length of the block, both ways between the first pods of host1 and host2 by default."""
    chosen = links or (("host1-pod1", "host2-pod1"), ("host2-pod1", "host1-pod1"))
    texts = [f"/run/netns/{source},/run/netns/{target},{cluster.pod(target)}" for source, target in chosen]
    argv = [sys.executable, "-I", "-S", str(STREAM), str(rate_per_s), *texts]
    process = cluster.sandbox.popen(None, argv, stdin=subprocess.PIPE)
    names = [f"{source} -> {target}" for source, target in chosen]
    with _running(process, names, flowing, lambda: evidence(cluster)) as stream:
        yield stream


@contextmanager
def probes_between(
    links: Sequence[tuple[Namespace, Namespace, str]], rate_per_s: int = RATE_PER_S, flowing: bool = True
) -> Iterator[Probes]:
    """The same between namespaces of this process: (from, to, the address there)."""
    texts = [f"{source.path},{target.path},{address}" for source, target, address in links]
    argv = [sys.executable, "-I", "-S", str(STREAM), str(rate_per_s), *texts]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with _running(process, [f"to {address}" for _, _, address in links], flowing) as stream:
        yield stream


@contextmanager
def _running(
    process: subprocess.Popen[str], names: Sequence[str], flowing: bool, explain: Callable[[], str] = str
) -> Iterator[Probes]:
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "[]\n", process.stderr.read() if process.stderr else ""
            stream = Probes(process, names, explain)
            if flowing:
                stream.flow()
            yield stream
            stream.end()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
