"""Writes docs/reliability.md from a test run: every fault, what happens, what was measured, and the test that shows it.

    python scripts/reliability.py run [JOBS]   run the tests of all faults and write it
    python scripts/reliability.py list         the tests, as pytest takes them
    python scripts/reliability.py check        whether the file names the tests that there are (exit status 1: it does not)

The rows are docstrings of tests (tests/support/rows.py); nothing in the file is written by hand.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.rows import Row, rows, rows_by_place  # noqa: E402

TARGET = ROOT / "docs" / "reliability.md"
HEAD = """\
# What happens when something breaks

Written by `make reliability` from a run of the tests named here; do not edit. Each test injects the fault for real, most of them
on real agents in network namespaces with a real etcd, while numbered datagrams (probes, 1,000 a second in each direction) go from pod to
pod. The principle is fail static: the datapath keeps the last state that was known to be good, and the agent compares the whole
desired state with the actual one again and again.

"Goal" is what a machine with nothing else to do should show. The tests' own limits lie above it, by as much as a busy machine needs:
a figure beyond the goal is a finding about this run's machine or about flanpy, and is left standing here to be seen. A test that failed
says so in its row.

"""
FAILED, NOT_RUN = "**FAILED**", "**did not run**"


def document(figures: dict[str, dict[str, Any]]) -> str:
    """The whole file. ``figures``: what tests/conftest.py has kept, by node id."""
    lines = ["| # | fault | what happens | goal | measured | test |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows():
        cells = (str(row.number), row.fault, row.happens, row.criterion, _measured(row, figures), f"`{row.node}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + _conditions() + "\n".join(["", *lines, ""])


def _conditions() -> str:
    load = os.getloadavg()[0]
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    return f"This run: {when}, Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.1f} at its end (other work included).\n"


def _measured(row: Row, figures: dict[str, dict[str, Any]]) -> str:
    """The figures of every parameter set of the test: ``userspace: ...; ebpf: ...``."""
    parts = []
    for node, kept in figures.items():
        base, _, parameters = node.partition("[")
        if base == row.node:
            text = _words(kept)
            parts.append(f"{parameters.removesuffix(']')}: {text}" if parameters else text)
    return "; ".join(parts) or NOT_RUN


def _words(kept: dict[str, Any]) -> str:
    """What one test has measured, and that it failed if it did."""
    measured = ", ".join(kept["measured"])
    if kept["outcome"] == "failed":
        return f"{FAILED} ({measured})" if measured else FAILED
    return measured or str(kept["outcome"])


def run(jobs: str) -> int:
    """Run the tests, so many files at a time, and write the file, also when some have failed; returns pytest's exit status."""
    with tempfile.TemporaryDirectory(prefix="flanpy-figures-") as directory:
        kept = Path(directory, "figures.json")
        argv = [sys.executable, "-m", "pytest", "-q", f"--numprocesses={jobs}", "--dist=loadfile", f"--figures={kept}"]
        status = subprocess.run([*argv, *nodes()], cwd=ROOT, check=False).returncode
        if not kept.exists():
            print(f"{TARGET.relative_to(ROOT)}: not written, for pytest has ended without figures", file=sys.stderr)
            return status or 1
        TARGET.write_text(document(json.loads(kept.read_text(encoding="utf-8"))), encoding="utf-8")
    if status != 0:
        print(f"{TARGET.relative_to(ROOT)}: written, with rows that say {FAILED} or {NOT_RUN}", file=sys.stderr)
    return status


def nodes() -> list[str]:
    """The tests of all rows, once each, in the suite's order: what one test leaves behind is what the next one is written for."""
    return list(dict.fromkeys(row.node for row in rows_by_place()))


def named() -> set[tuple[int, str]]:
    """Number and test of every row of the file as it is."""
    text = TARGET.read_text(encoding="utf-8")
    return {(int(number), node) for number, node in re.findall(r"^\| (\d+) \|.*\| `([^`]+)` \|$", text, re.MULTILINE)}


def check() -> int:
    """Hold the file's rows against the tests that there are."""
    there = {(row.number, row.node) for row in rows()}
    for number, node in sorted(named() ^ there):
        word = "has no such row" if (number, node) in there else "names a test that there is not"
        print(f"{TARGET.relative_to(ROOT)}: {word}: {number} {node}; run `make reliability`", file=sys.stderr)
    return int(named() != there)


def main() -> int:
    """Returns the exit status."""
    match sys.argv[1:]:
        case ["run"]:
            return run("3")
        case ["run", jobs]:
            return run(jobs)
        case ["list"]:
            print("\n".join(nodes()))
            return 0
        case ["check"]:
            return check()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
