"""Rules of the whole suite: what needs root says so where there is none, and never in CI, where nothing is skipped.

``measured`` is how a test of a fault says what it has measured; ``--figures FILE`` keeps that for docs/reliability.md.
"""

import json
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.digest import digest, fold

NEED_ROOT = {"netns", "faults"}
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts in the background; commands would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
"""A busy machine may take any time for an example; how long a whole test may take is pytest's to say."""
LONG = (
    "faults/test_soak",
    "netns/test_agent_start",
    "netns/test_underlay_changes",
    "netns/test_bench_beds",
    "netns/test_ebpf_ipv6",
    "netns/test_ebpf_suite",
    "netns/test_pod_moves",
    "netns/test_distribution",
    "netns/test_operator",
    "netns/test_lab_cli",
    "faults/",
    "netns/",
    "contract/",
)
"""Which files begin first: those that take longest, so that no worker is left with one of them when the others have nothing more to do."""
FIGURES = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", metavar="FILE", help="write outcome and measured figures of every test there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}
    if config.getoption("--figures") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Keeper(config), "figures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first. Outside CI and without root, tests that make namespaces and devices are skipped with the reason."""
    items.sort(key=lambda item: _turn(_place(item)))  # stable: a file's tests stay together and in order
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason="needs root (network namespaces, TUN): run `sudo make test`")
    for item in items:
        if _place(item).parts[0] in NEED_ROOT or item.get_closest_marker("root"):
            item.add_marker(skip)


def _place(item: pytest.Item) -> Path:
    return item.path.relative_to(Path(__file__).parent)


def _turn(path: Path) -> int:
    return next((turn for turn, start in enumerate(LONG) if path.as_posix().startswith(start)), len(LONG))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Before the tracebacks of several failures stands what each of them is, for logs are cut."""
    failed, errors = ([*terminalreporter.stats.get(name, [])] for name in ("failed", "error"))
    if len(failed) + len(errors) > 1:
        terminalreporter.section("in short", "=")
        for line in digest([each for each in (*failed, *errors) if isinstance(each, pytest.TestReport)]):
            terminalreporter.write_line(line)
        fold([each for each in errors if isinstance(each, pytest.TestReport)])
    return (yield)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say what was measured, in words with units; several times for several figures."""
    return lambda figure: record_property("measured", figure)


class _Keeper:
    """Gathers outcomes and figures of all workers and writes them at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kept = self._config.stash[FIGURES].setdefault(report.nodeid, {"outcome": "passed", "measured": [], "seconds": 0.0})
        kept["seconds"] = round(kept["seconds"] + report.duration, 2)
        if report.outcome != "passed":
            kept["outcome"] = report.outcome
        if report.when == "call":
            kept["measured"] = [value for name, value in report.user_properties if name == "measured"]

    def pytest_sessionfinish(self) -> None:
        path = Path(self._config.getoption("--figures"))
        path.write_text(json.dumps(self._config.stash[FIGURES], indent=1) + "\n", encoding="utf-8")
