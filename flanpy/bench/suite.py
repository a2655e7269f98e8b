"""A whole run: checks what works here, runs the chosen groups, returns the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from flanpy.bench import agents, core
from flanpy.bench.backend_agents import BACKENDS, lack
from flanpy.bench.content import content_task
from flanpy.bench.latency import latency_tasks
from flanpy.bench.progress import show_progress
from flanpy.bench.runner import SETTLE_S, Progress, Recorder, plan, run_beds
from flanpy.bench.samples import Figure, Result, Settings
from flanpy.bench.tasks import Task, tcp_tasks
from flanpy.bench.udp import udp_tasks
from flanpy.errors import LabError, UsageError
from flanpy.lab.process import require_tool

TOOLS = {"ip": "iproute2", "ethtool": "ethtool", "iperf3": "iperf3", "ping": "iputils-ping", "bridge": "iproute2"}

AGENTS_S, AGENTS_ROUND_S, CORE_ROUND_S = 95.0, 13.0, 2.0
"""About how long the agents' figures take, by themselves and a round, and a round of the core."""


def missing(setups: Iterable[str]) -> dict[str, str]:
    """Those of the setups that cannot be measured on this machine, and why."""
    return {setup: reason for setup in setups if (reason := _lack(setup))}


def _lack(setup: str) -> str | None:
    """What a setup lacks here; the probes of ebpf load its programs, so they are made only when they are asked for."""
    if setup == "flanneld":
        return "needs a flanneld binary: --flanneld PATH"
    if setup in BACKENDS:
        return lack(setup)
    if setup in ("ebpf", "ebpf-bypass"):
        if os.geteuid() != 0:
            return "needs root"
        from flanpy.datapath.ebpf_probe import first_problem, probe_all

        return first_problem(probe_all())
    return None


def run(settings: Settings, *, quick: bool) -> Result:
    """Measure everything that the settings ask for. Ctrl-C ends the run and keeps the samples that are complete."""
    tasks = bed_tasks(settings, quick)
    figures: list[Figure] = [replace(figure, task=task.title) for task in tasks for figure in task.figures]
    parts: list[tuple[int, Callable[[Recorder, Progress], None]]] = []
    if tasks:
        _require_bed_tools()
        steps = sum(1 for _ in plan(settings, tasks))
        parts.append((steps, lambda recorder, progress: run_beds(settings, tasks, recorder, progress)))
    if "agent" in settings.groups:
        _require_bed_tools()
        require_tool("etcd", "etcd-server")
        figures += agents.FIGURES
        parts.append((agents.steps(settings), lambda recorder, progress: _run_agents(settings, recorder, progress)))
    if "core" in settings.groups:
        figures += core.figures()
        parts.append((core.steps(settings), lambda recorder, progress: core.run_core(settings, recorder, progress)))
    recorder = Recorder(settings, figures)
    with show_progress(sum(steps for steps, _ in parts)) as progress:
        progress.note(f"about {_duration(estimate_s(settings, tasks))}; Ctrl-C ends it and keeps what is complete")
        try:
            for _, part in parts:
                part(recorder, progress)
        except KeyboardInterrupt:
            recorder.interrupted = True
            recorder.warnings.append("the run was interrupted: later rounds are missing")
    return recorder.result()


def _run_agents(settings: Settings, recorder: Recorder, progress: Progress) -> None:
    """What was measured before stays, also when a lab fails."""
    try:
        agents.run_agents(settings, recorder, progress, without_ebpf=_lack("ebpf"))
    except LabError as error:
        recorder.fail_part("agents", str(error))


def estimate_s(settings: Settings, tasks: Sequence[Task]) -> float:
    """About how long a run takes."""
    beds_s = 0.0
    if tasks:
        switches = settings.rounds * len(settings.modes) if len(settings.modes) > 1 else 1
        beds_s = sum(step.task.cost_s for step in plan(settings, tasks)) + len(settings.setups) + switches * SETTLE_S
    agents_s = AGENTS_S + AGENTS_ROUND_S * settings.rounds if "agent" in settings.groups else 0.0
    return beds_s + agents_s + (core.steps(settings) * CORE_ROUND_S if "core" in settings.groups else 0.0)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def bed_tasks(settings: Settings, quick: bool) -> Sequence[Task]:
    """The tasks of the chosen groups that need beds."""
    tasks: list[Task] = []
    if "tcp" in settings.groups:
        tasks += tcp_tasks(settings, quick)
    if "udp" in settings.groups:
        tasks += udp_tasks(settings)
    if "latency" in settings.groups:
        tasks += latency_tasks(settings)
    if "content" in settings.groups:
        tasks.append(content_task(settings.gigabytes))
    return tasks


def _require_bed_tools() -> None:
    if os.geteuid() != 0:
        raise UsageError("flanpy bench: measuring between namespaces needs root (`flanpy bench core` does not)")
    for tool, package in TOOLS.items():
        require_tool(tool, package)
