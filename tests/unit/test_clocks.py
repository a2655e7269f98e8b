"""What looks at the time of day, and why: everything else lives on the monotonic clock, so that a clock may jump a day."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "flanpy"
WALL_CLOCKS = {"time", "time_ns", "localtime", "gmtime", "ctime", "CLOCK_REALTIME", "now", "utcnow", "today", "fromtimestamp"}
MAY_LOOK = {
    "agent/bugreport.py": "the time of the files in the archive",
    "agent/capture.py": "the time of captured packets",
    "cli/capture.py": "the same, shown",
    "agent/logs.py": "lines for people",
    "agent/own_use.py": "the start time of the process, as Prometheus wants it",
    "cni/saved.py": "the age of files that an earlier run of the plugin has left",
    "bench/runner.py": "when a run was made",
    "datapath/ebpf_pins.py": "whether a directory has changed just now; after a jump it is looked at closely",
}


def looks_at_the_time_of_day(source: str) -> bool:
    """Whether the code reads a wall clock: ``time.time()`` and the like, ``datetime.now()``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name("time"), attr=name) if name in WALL_CLOCKS:
                return True
            case ast.Attribute(value=ast.Name("datetime" | "date") | ast.Attribute(attr="datetime" | "date"), attr=name):
                if name in WALL_CLOCKS:
                    return True
            case ast.ImportFrom(module="time", names=names) if any(each.name in WALL_CLOCKS for each in names):
                return True
    return False


def test_only_these_modules_look_at_the_time_of_day() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if looks_at_the_time_of_day(path.read_text(encoding="utf-8"))
    }
    assert found == set(MAY_LOOK)


def test_a_look_at_the_time_of_day_would_be_found() -> None:
    for source in (
        "import time\ntime.time()",
        "from time import time",
        "datetime.now()",
        "import datetime\ndatetime.datetime.now()",
    ):
        assert looks_at_the_time_of_day(source)
    assert not looks_at_the_time_of_day("import time\ntime.monotonic()")
