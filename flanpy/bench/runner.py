"""Runs a plan: all beds side by side, rounds interleaved, every sample with what was lost meanwhile.

    for each round  for each mode  for each task  for each setup (the order rotates by round)  take a sample

Rounds are outermost, so a slow drift of a shared machine reaches all setups alike, and a run that is stopped early is complete
for the rounds that it has.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from flanpy.bench import health, machine
from flanpy.bench.beds import Bed, make_bed
from flanpy.bench.samples import Figure, Result, Sample, Settings
from flanpy.bench.tasks import Task, Value
from flanpy.errors import LabError
from flanpy.lab.sandbox import Sandbox

BUSY_LOAD = 0.5
"""Load of the machine above which the report warns that others were at work when the run began."""
SETTLE_S = 1.0
"""After a change of mode: ebpf looks at its uplink twice a second at rest, and what peers have said of the old path holds for 0.6 s."""


class Progress(Protocol):
    """Where a run tells how far it is."""

    def step(self, doing: str) -> None:
        """A sample begins."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """One place in the plan."""

    round: int
    mode: str
    task: Task
    setup: str

    def __str__(self) -> str:
        return f"{self.setup}, {self.mode}, {self.task.title}"


def plan(settings: Settings, tasks: Sequence[Task]) -> Iterator[Step]:
    """Every step in the order in which it is done."""
    for number in range(settings.rounds):
        turn = number % len(settings.setups)
        order = settings.setups[turn:] + settings.setups[:turn]
        for mode in settings.modes:
            for task in tasks:
                for setup in order:
                    yield Step(number, mode, task, setup)


def now() -> str:
    """The time as the result records it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Recorder:
    """Collects samples, distributions and warnings, and makes the result of them; also of a run that was interrupted."""

    def __init__(self, settings: Settings, figures: Sequence[Figure]) -> None:
        self._settings = settings
        self._figures = tuple(figures)
        self._started = now()
        self._machine = machine.describe()
        self._samples: list[Sample] = []
        self._losses: dict[str, Counter[str]] = {}
        self._buckets: dict[str, Counter[int]] = {}
        self._work: dict[str, Counter[str]] = {}
        self._failures: list[str] = []
        self.warnings: list[str] = []
        self.interrupted = False
        if os.getloadavg()[0] > BUSY_LOAD:
            self.warnings.append(f"the machine was not idle when the run began (load {os.getloadavg()[0]:.2f})")

    def add(self, value: Value, setup: str, mode: str, number: int) -> None:
        """Keep one value as a sample."""
        self._samples.append(Sample(value.figure, setup, mode, number, value.value, value.detail))
        if value.distribution:
            self._buckets.setdefault(f"{value.figure}/{setup}/{mode}", Counter()).update(dict(value.distribution))

    def note(self, name: str, value: object) -> None:
        """Keep something about the machine or the build that explains the figures."""
        self._machine[name] = value

    def add_losses(self, step: Step, lost: dict[str, int]) -> None:
        """Keep what the kernel lost during a step."""
        if lost:
            self._losses.setdefault(str(step), Counter()).update(lost)

    def add_work(self, step: Step, done: dict[str, int]) -> None:
        """Keep what the datapath did during a step."""
        if done:
            self._work.setdefault(str(step), Counter()).update(done)

    def fail(self, step: Step, reason: str) -> None:
        """A sample could not be taken; the run goes on."""
        self.fail_part(f"round {step.round + 1}, {step}", reason)

    def fail_part(self, part: str, reason: str) -> None:
        """The same of a part of the run that is no step of a bed."""
        self._failures.append(f"{part}: {reason}")

    def result(self) -> Result:
        """Everything so far."""
        present = {sample.figure for sample in self._samples}
        losses = [f"{where}: {', '.join(f'{k} {v}' for k, v in sorted(lost.items()))}" for where, lost in self._losses.items()]
        return Result(
            started=self._started,
            finished=now(),
            settings=self._settings,
            machine=self._machine,
            figures=tuple(figure for figure in self._figures if figure.key in present),
            samples=tuple(self._samples),
            warnings=tuple(self.warnings),
            losses=tuple(losses),
            failures=tuple(self._failures),
            work={where: dict(sorted(done.items())) for where, done in self._work.items()},
            distributions={name: sorted(counts.items()) for name, counts in self._buckets.items()},
            interrupted=self.interrupted,
        )


def run_beds(settings: Settings, tasks: Sequence[Task], recorder: Recorder, progress: Progress) -> None:
    """Make the beds and take every sample of the plan.

    A sample that fails is recorded as a failure and the run goes on, without the setup if its packets are carried no more.
    """
    with Sandbox.create() as sandbox:
        beds: dict[str, Bed] = {}
        for setup in settings.setups:
            progress.note(f"making the bed of {setup}")
            beds[setup] = make_bed(sandbox, setup, settings.mtu_bytes, settings.flanneld)
        mode = None
        for step in plan(settings, tasks):
            if step.mode != mode:
                mode = step.mode
                _switch(beds.values(), mode)
            progress.step(f"round {step.round + 1}/{settings.rounds}  {step.mode}  {step.task.title}  {step.setup}")
            if step.setup not in beds:
                continue
            try:
                _take(beds[step.setup], step, recorder)
            except LabError as error:
                recorder.fail(step, str(error))
                progress.note(f"failed: {error}")
                if beds[step.setup].carries:
                    beds[step.setup].start_helpers()
                else:
                    del beds[step.setup]


def _switch(beds: Iterable[Bed], mode: str) -> None:
    """Every bed into this mode, and then peace for all of them."""
    for bed in beds:
        with suppress(LabError):  # its next sample fails by the same, and is recorded so
            bed.set_mode(mode)
    time.sleep(SETTLE_S)


def _take(bed: Bed, step: Step, recorder: Recorder) -> None:
    bed.set_mode(step.mode)
    bed.check()
    lost, done = health.read_losses(bed), bed.counters()
    values = step.task.measure(bed)
    recorder.add_work(step, health.increase(done, bed.counters()))
    recorder.add_losses(step, health.increase(lost, health.read_losses(bed)))
    for value in values:
        recorder.add(value, step.setup, step.mode, step.round)
