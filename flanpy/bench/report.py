"""Tables of a result, and the report made of them. Pure: a result in, text out.

Every value is a median with its extremes; every ratio is taken round by round between setups that were measured in
turn, which is what makes it mean something on a shared machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanpy.bench.bounds import bounds
from flanpy.bench.goals import OURS, Verdict, judge
from flanpy.bench.samples import MODES, NO_MODE, SETUPS, Figure, Result
from flanpy.bench.statistics import Summary, paired_ratio, summarize
from flanpy.bench.work import calls_a_packet, packets_of

REFERENCES = ("proxy", "flanneld", "vxlan", "routed", "naive")
COMPARED = (*OURS, "flanpy")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text, for Markdown or the terminal."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float) -> str:
    """Three significant digits, thousands apart: ``0.0123``, ``4.56``, ``1,234,000``."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{float(f'{value:.4g}'):,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(summary: Summary | None) -> str:
    """``median (least .. most)``, or a dash."""
    if summary is None:
        return "–"
    if summary.count == 1:
        return number(summary.median)
    return f"{number(summary.median)} ({number(summary.low)} .. {number(summary.high)})"


def figure_table(result: Result, figure: Figure) -> Table:
    """A figure's medians: setups down, modes across."""
    modes = result.modes_with(figure.key)
    rows = tuple(
        (setup, *(spread(summarize(result.values(figure.key, setup, mode).values())) for mode in modes))
        for setup in result.setups_with(figure.key)
    )
    arrow = "more is better" if figure.higher_is_better else "less is better"
    head = ("setup", *(figure.unit if mode == NO_MODE else mode for mode in modes))
    return Table(f"{figure.title} ({figure.unit}; {arrow})", head, rows)


def ratio_table(result: Result, figure: Figure) -> Table | None:
    """A figure's ratios, ours to the others, or None when there is nothing to compare."""
    if not figure.compared:
        return None
    modes, present = result.modes_with(figure.key), result.setups_with(figure.key)
    rows = []
    for ours in (name for name in COMPARED if name in present):
        for other in (name for name in REFERENCES if name in present):
            pairs = [(result.values(figure.key, ours, mode), result.values(figure.key, other, mode)) for mode in modes]
            rows.append((f"{ours} / {other}", *(spread(paired_ratio(*pair)) for pair in pairs)))
    head = ("ratio", *("" if mode == NO_MODE else mode for mode in modes))
    return Table(f"{figure.title}: ratios", head, tuple(rows)) if rows else None


def goals_table(verdicts: Sequence[Verdict]) -> Table:
    """Every goal that was measured, with what was reached."""
    rows = tuple(
        (
            verdict.goal.ours.setup,
            verdict.goal.title,
            f"{'>=' if verdict.goal.at_least else '<='} {number(verdict.goal.bound)} {verdict.goal.unit}",
            spread(verdict.measured),
            _outcome(verdict),
        )
        for verdict in verdicts
    )
    return Table("Goals", ("setup", "figure", "goal", "measured", ""), rows)


def _outcome(verdict: Verdict) -> str:
    if not verdict.judged:
        return "too short to judge"
    return "reached" if verdict.reached else "**not reached**"


PER = (
    ("packets / TUN read", "encapsulated", "tun_reads"),
    ("datagrams / send", "udp_sent_segments", "udp_sends"),
    ("datagrams / receive", "udp_received_segments", "udp_receives"),
    ("packets / TUN write", "decapsulated", "tun_writes"),
)


def work_table(result: Result) -> Table | None:
    """How well the datapaths batch: packets for each system call, and calls for each packet, both hosts together."""
    rows = []
    for where, done in result.work.items():
        packets, calls = packets_of(done), calls_a_packet(done)
        if calls:
            batches = (number(done.get(many, 0) / done[one]) if done.get(one) else "–" for _, many, one in PER)
            rows.append((where, *batches, number(calls), number(done.get("polls", 0) / packets)))
    head = ("setup, mode, task", *(title for title, _, _ in PER), "calls / packet", "sleeps / packet")
    return Table("What the datapaths did", head, tuple(rows)) if rows else None


def tables(result: Result) -> Iterator[Table]:
    """All tables in the order of the report: goals first, then each figure with its ratios."""
    verdicts = judge(result)
    if verdicts:
        yield goals_table(verdicts)
    for figure in result.figures:
        yield figure_table(result, figure)
        ratios = ratio_table(result, figure)
        if ratios is not None:
            yield ratios
    work = work_table(result)
    if work is not None:
        yield work


def markdown_table(table: Table) -> str:
    """One table as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (table.header, tuple("---" for _ in table.header), *table.rows)]
    return "\n".join(lines)


def markdown(result: Result, plots: Sequence[str] = ()) -> str:
    """The whole report."""
    parts = [f"# flanpy bench, {result.started}", _conditions(result)]
    for table in tables(result):
        level = "###" if table.title.endswith(": ratios") else "##"
        parts.append(f"{level} {table.title}\n\n{markdown_table(table)}")
    parts += _missed(result)
    if plots:
        parts.append("## Plots\n\n" + "\n".join(f"![{name}]({name})" for name in plots))
    parts.append(_losses(result))
    return "\n\n".join(parts) + "\n"


def _conditions(result: Result) -> str:
    machine, settings = result.machine, result.settings
    lines = [
        f"Kernel {machine.get('kernel')}, {machine.get('cpus')} x {machine.get('cpu_model')}, {machine.get('iperf3')}, "
        f"flanpy {machine.get('flanpy')}. {settings.rounds} rounds of {settings.seconds:g} s a sample, setups in turn within "
        f"each round; underlay MTU {settings.mtu_bytes}. Finished {result.finished}.",
        "",
        "Values are medians over the rounds (least .. most); ratios are taken round by round.",
        "",
        *(f"- **{name}**: {SETUPS[name]}" for name in settings.setups),
        *(f"- *{name}*: {MODES[name]}" for name in settings.modes),
    ]
    if result.warnings or result.failures:
        lines.append("")
    lines += [f"- warning: {text}" for text in result.warnings]
    lines += [f"- failed: {text.splitlines()[0]}" for text in result.failures]
    return "\n".join(lines)


def _missed(result: Result) -> Iterator[str]:
    """The goals that were not reached, each with what bounds it here."""
    missed = [verdict for verdict in judge(result) if verdict.judged and not verdict.reached]
    if missed:
        lines = [
            f"- **{verdict.goal.ours.setup}: {verdict.goal.title}**: {_distance(verdict)} {bounds(result, verdict)}".rstrip()
            for verdict in missed
        ]
        yield "## What bounds the goals that were not reached\n\n" + "\n".join(lines)
        yield "docs/performance.md and docs/ebpf.md say which ideas were tried, with which result, and what would be needed."


def _distance(verdict: Verdict) -> str:
    sign = ">=" if verdict.goal.at_least else "<="
    return f"{number(verdict.measured.median)}, wanted {sign} {number(verdict.goal.bound)} {verdict.goal.unit}."


def _losses(result: Result) -> str:
    if not result.losses:
        return "## What the kernel lost\n\nNothing: no counter of errors or drops moved during any sample."
    lines = "\n".join(f"- {line}" for line in result.losses)
    return f"## What the kernel lost\n\nCounters of errors and drops that moved, all rounds together:\n\n{lines}"
