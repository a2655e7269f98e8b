"""Plots of a result as SVG and PNG, by matplotlib (the optional extra ``bench``): one picture a question.

throughput   by setup and mode          packet rate   by size and setup
latency      share of requests that took longer, on logarithmic axes      routes   cost of a packet by number of routes
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from flanpy.bench.samples import SETUPS, Figure, Result
from flanpy.bench.statistics import summarize

COLOURS = {"routed": "#8c8c8c", "vxlan": "#e69f00", "proxy": "#d55e00", "flanneld": "#cc79a7", "userspace": "#0072b2"}
COLOURS |= {"ebpf": "#009e73", "ebpf-bypass": "#56b4e9", "flanpy": "#0072b2", "naive": "#d55e00"}
"""One colour a setup in all pictures, told apart by colour-blind readers too (Okabe and Ito)."""


def draw(result: Result, directory: Path) -> tuple[str, ...]:
    """Draw what there are samples for; returns the names of the files."""
    names: list[str] = []
    for name, canvas in (
        ("throughput", _throughput(result)),
        ("packet-rate", _packet_rate(result)),
        ("latency", _latency(result)),
        ("routes", _routes(result)),
    ):
        if canvas is not None:
            for kind in ("svg", "png"):
                canvas.savefig(directory / f"{name}.{kind}", dpi=144, bbox_inches="tight")
                names.append(f"{name}.{kind}")
    return tuple(names)


def _bars(axes: Any, result: Result, groups: Sequence[tuple[str, str, str]], setups: Sequence[str]) -> None:
    """Grouped bars of medians with whiskers to the extremes; a group is (label, figure, mode)."""
    width = 0.8 / max(1, len(setups))
    for index, setup in enumerate(setups):
        for place, (_, figure, mode) in enumerate(groups):
            summary = summarize(result.values(figure, setup, mode).values())
            if summary is None:
                continue
            whiskers = [[summary.median - summary.low], [summary.high - summary.median]]
            at = place + (index - (len(setups) - 1) / 2) * width
            label = setup if place == 0 else None
            axes.bar(at, summary.median, width * 0.95, color=COLOURS.get(setup), label=label, yerr=whiskers, ecolor="#404040")
    axes.set_xticks(range(len(groups)), [label for label, _, _ in groups])
    axes.grid(axis="y", alpha=0.3)
    if axes.containers:
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _throughput(result: Result) -> Canvas | None:
    figures = [figure for figure in result.figures if re.fullmatch(r"tcp_\d+(_reverse|_both)?(_bbr)?", figure.key)]
    if not figures:
        return None
    canvas = Canvas(figsize=(9, 3.2 * len(figures)))
    canvas.subplots_adjust(hspace=0.3)
    for index, figure in enumerate(figures):
        axes = canvas.add_subplot(len(figures), 1, index + 1)
        _bars(axes, result, [(mode, figure.key, mode) for mode in result.modes_with(figure.key)], result.setups_with(figure.key))
        axes.set_title(figure.title, fontsize="medium")
        axes.set_ylabel("Gbit/s")
    return canvas


def _sized(result: Result, pattern: str) -> list[tuple[int, Figure]]:
    """Figures whose key matches, with the number in it, in its order."""
    found = [(re.fullmatch(pattern, figure.key), figure) for figure in result.figures]
    return sorted(((int(match[1]), figure) for match, figure in found if match), key=lambda pair: pair[0])


def _packet_rate(result: Result) -> Canvas | None:
    sizes = _sized(result, r"udp_(\d+)")
    if not sizes:
        return None
    modes = result.modes_with(sizes[0][1].key)
    canvas = Canvas(figsize=(9, 3.2 * len(modes)))
    canvas.subplots_adjust(hspace=0.3)
    for index, mode in enumerate(modes):
        axes = canvas.add_subplot(len(modes), 1, index + 1)
        groups = [(f"{size} B", figure.key, mode) for size, figure in sizes]
        _bars(axes, result, groups, result.setups_with(sizes[0][1].key))
        axes.set_title(f"UDP packets a second with at most 0.5 % loss, {mode}", fontsize="medium")
        axes.set_ylabel("packets/s")
        axes.set_yscale("log")
    return canvas


def _latency(result: Result) -> Canvas | None:
    names = sorted({name.split("/")[0] for name in result.distributions if name.startswith("latency_")})
    modes = [mode for mode in result.settings.modes if any(name.endswith(f"/{mode}") for name in result.distributions)]
    if not names or not modes:
        return None
    canvas = Canvas(figsize=(5.5 * len(modes), 3.6 * len(names)))
    for row, name in enumerate(names):
        for column, mode in enumerate(modes):
            axes = canvas.add_subplot(len(names), len(modes), row * len(modes) + column + 1)
            for setup in SETUPS:
                buckets = result.distributions.get(f"{name}/{setup}/{mode}")
                if buckets:
                    axes.plot(*_longer_than(buckets), color=COLOURS.get(setup), label=setup, drawstyle="steps-post")
            axes.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel="us", ylabel="share that took longer")
            axes.set_title(f"{name.removeprefix('latency_').removesuffix('_p50')}, {mode}", fontsize="medium")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(frameon=False, fontsize="small")
    canvas.subplots_adjust(wspace=0.3, hspace=0.45)
    return canvas


def _longer_than(buckets: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """For each bucket its least value in us and the share of all values that are at least that."""
    total = left = sum(count for _, count in buckets)
    xs, ys = [], []
    for floor_ns, count in buckets:
        xs.append(max(floor_ns, 1) / 1000)
        ys.append(left / total)
        left -= count
    return xs, ys


def _routes(result: Result) -> Canvas | None:
    families = {
        "lookup, random": _sized(result, r"core_lookup_(\d+)_random"),
        "encap, 64 B": _sized(result, r"core_encap_64_routes_(\d+)"),
        "decap, 64 B": _sized(result, r"core_decap_64_routes_(\d+)"),
    }
    if not any(families.values()):
        return None
    canvas = Canvas(figsize=(8, 4))
    axes = canvas.add_subplot(1, 1, 1)
    for (label, sizes), marker in zip(families.items(), "os^", strict=True):
        for setup in ("flanpy", "naive"):
            points = [(size, summarize(result.values(figure.key, setup, "-").values())) for size, figure in sizes]
            known = [(size, summary.median) for size, summary in points if summary is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker=marker, color=COLOURS[setup], label=f"{label}, {setup}")
    axes.set(xscale="log", yscale="log", xlabel="routes", ylabel="ns a packet", title="Cost by number of routes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return canvas
