"""Writes docs/reference.md from the code: flags, commands, exit codes, metrics, verdicts, events of the log.

    python scripts/reference.py           write it
    python scripts/reference.py --check   say whether it is up to date (exit status 1: it is not)

Nothing in that file is written by hand, so it cannot say what the code does not do.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanpy import errors
from flanpy.agent.metrics import METRICS
from flanpy.cli.main import COMMANDS
from flanpy.config.agent_flags import AGENT_FLAGS, GROUPS
from flanpy.config.flags import Flag
from flanpy.datapath.core import VERDICT_MEANINGS, WORK_MEANINGS

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference.md"
LEVELS = ("debug", "info", "warning", "error")

HEAD = """\
# Reference

Written by `make reference` from the code; do not edit.
"""


def document() -> str:
    """The whole file."""
    parts = (HEAD, commands(), flags(), exit_codes(), metrics(), verdicts(), log_events())
    return "\n".join(parts)


def table(headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; a bar within a cell is escaped."""
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def commands() -> str:
    """The commands."""
    rows = [(f"`flanpy {name}`", text) for name, text in COMMANDS.items()]
    return f"## Commands\n\n{table(('command', 'what for'), rows)}\n`flanpy COMMAND --help` has flags, examples and exit status of each.\n"


# ------------------------------------------------------------------------------------------------ flags and exit codes


def flags() -> str:
    """The agent's flags, group by group."""
    parts = [
        "## Flags of the agent\n\nLooked for in this order: flag, `FLANPY_…`, `FLANNELD_…` (where given), options file (`--config`), "
        "default. `flanpy reload` and SIGHUP apply changes of those that are marked *live*; the others wait for a restart.\n"
    ]
    for group, title in GROUPS.items():
        rows = [_flag_row(flag) for flag in AGENT_FLAGS if flag.group == group]
        parts.append(f"### {title}\n\n{table(('flag', 'environment', 'default', 'meaning'), rows)}")
    return "\n".join(parts)


def _flag_row(flag: Flag) -> tuple[str, ...]:
    metavar = "true|false" if flag.boolean else flag.metavar
    environment = ", ".join(f"`{name}`" for name in flag.environment())
    return f"`--{flag.name} {metavar}`", environment, _default(flag.default), flag.help + (" *live*" if flag.live else "")


def _default(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(str(item) for item in value)
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value in (None, "") else f"`{value}`"


def exit_codes() -> str:
    """The exit codes, from the tree in errors.py; commands that mean something else by one say so in their help."""
    by_code: dict[int, list[str]] = {}
    tree = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.FlanpyError)}
    for name, kind in tree.items():
        if kind.exit_code != getattr(kind.__bases__[0], "exit_code", 1):
            by_code.setdefault(kind.exit_code, []).append(f"{(kind.__doc__ or '').splitlines()[0]} ({name})")
    own = [(str(code), " ".join(by_code[code])) for code in sorted(by_code)]
    rows = [("0", "success"), ("1", "anything else: a defect, or what the command's help says"), *own, ("130", "ended by Ctrl-C")]
    more = "`flanpy status` ends with 1 where the node is not ready or degraded; `flanpy doctor` with 1 for warnings and 11 for errors.\n"
    return f"## Exit codes\n\n{table(('code', 'meaning'), rows)}\n{more}"


# ------------------------------------------------------------------------------------------------ what is counted


def metrics() -> str:
    """What /metrics exports."""
    rows = [(f"`{each.name}`", each.kind, ", ".join(each.labels), each.help) for each in METRICS]
    return f"## Metrics\n\nAt `/metrics` on `--healthz-ip` and `--healthz-port`.\n\n{table(('name', 'type', 'labels', 'meaning'), rows)}"


def verdicts() -> str:
    """What becomes of packets, and what the workers count besides."""
    names = [(f"`{name}`", text) for name, text in VERDICT_MEANINGS.items()]
    work = [(f"`{name}`", text) for name, text in WORK_MEANINGS.items()]
    return (
        f"## Verdicts\n\nEvery packet meets exactly one, but for the ICMP errors, which are counted besides.\n\n"
        f"{table(('verdict', 'meaning'), names)}\n## Work counters\n\n{table(('counter', 'meaning'), work)}"
    )


# ------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True, order=True)
class LogEvent:
    """One event as some line of the code logs it."""

    name: str
    level: str
    fields: tuple[str, ...]
    message: str


def log_events() -> str:
    """Events with level, fields and message; names are stable, messages may change."""
    found = sorted({each for path in sorted((ROOT / "flanpy").rglob("*.py")) for each in events_of(path)})
    rows = [(f"`{each.name}`", each.level, ", ".join(each.fields), each.message) for each in found]
    head = "## Events of the log\n\n`--log-format json` has them in `event`, with their fields beside.\n\n"
    return head + table(("event", "level", "fields", "message"), rows)


def events_of(path: Path) -> Iterator[LogEvent]:
    """``log.info("…", extra=event("name", field=…))``, ``Say("info", "name", "…")`` and pairs of level and ``lease_…``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield from _logged(node)
            yield from _said(node)
        elif (
            isinstance(node, ast.Tuple) and len(pair := _texts(node.elts)) == len(node.elts) == 2 and pair[1].startswith("lease_")
        ):
            yield LogEvent(pair[1], pair[0], (), "")


def _logged(call: ast.Call) -> Iterator[LogEvent]:
    extra = next((word.value for word in call.keywords if word.arg == "extra"), None)
    if not isinstance(call.func, ast.Attribute) or not isinstance(extra, ast.Call) or not _texts(extra.args):
        return
    level = call.func.attr if call.func.attr in LEVELS else "varies"
    message = next((text for text in _texts(call.args) if text != "%s"), "")
    yield LogEvent(_texts(extra.args)[0], level, tuple(word.arg for word in extra.keywords if word.arg), _shown(message))


def _said(call: ast.Call) -> Iterator[LogEvent]:
    if isinstance(call.func, ast.Name) and call.func.id == "Say" and len(words := _texts(call.args)) >= 2:
        yield LogEvent(words[1], words[0], (), _shown(words[2]) if len(words) > 2 else "")


def _texts(nodes: list[ast.expr]) -> list[str]:
    """The texts among these expressions; the values in an f-string become dots."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


def _shown(message: str) -> str:
    return re.sub(r"%(\(\w+\))?[-+0-9.]*[a-z]", "…", message.replace("%%", "%"))


def main() -> int:
    """Write or check."""
    text = document()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET.relative_to(ROOT)} is not what the code says; run: make reference", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
