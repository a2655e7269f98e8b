"""Gathers what somebody elsewhere needs to understand a problem of this node, without secrets, as one archive.

    flanpy-report-HOST-TIME/   one text file for each thing looked at, and ``contents.txt`` with what could not be had and why

Runs in the operator's process; the agent is asked, tools only print. Every text passes through ``core.secrets``; key files are read
only to know what must not appear. Every part is bounded in time and size, and one that fails leaves its reason in its place.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flanpy import __version__
from flanpy.agent.client import ask
from flanpy.config.agent_flags import AGENT_FLAGS
from flanpy.core.secrets import remove_secrets
from flanpy.errors import FlanpyError

PART_BYTES_MAX = 4 << 20
TOOL_TIMEOUT_S = 15.0
LOG_LINES = 5000
QUESTIONS = ("status", "peers", "routes", "pods", "options")

TOOLS: Mapping[str, tuple[str, ...]] = {
    "ip-address": ("ip", "-details", "-statistics", "address"),
    "ip-route": ("ip", "route", "show", "table", "all"),
    "ip-route6": ("ip", "-6", "route", "show", "table", "all"),
    "ip-rule": ("ip", "rule"),
    "ip-neighbour": ("ip", "neighbour"),
    "bridge-fdb": ("bridge", "fdb"),
    "bridge-link": ("bridge", "-details", "link"),
    "nft-ruleset": ("nft", "list", "ruleset"),
    "iptables": ("iptables-save", "-c"),
    "ip6tables": ("ip6tables-save", "-c"),
    "sockets": ("ss", "-uapn"),
    "tc-filters": ("tc", "-s", "filter", "show", "dev", "{uplink}", "ingress"),
    "offloads": ("ethtool", "-k", "{uplink}"),
    "interface-counters": ("ethtool", "-S", "{uplink}"),
    "bpf-links": ("bpftool", "link"),
    "modules": ("lsmod",),
    "agent-log": ("journalctl", "--unit", "flanpy", "--lines", str(LOG_LINES), "--no-pager", "--output", "short-iso-precise"),
    "kernel-log": ("journalctl", "--dmesg", "--lines", "1000", "--no-pager", "--output", "short-iso-precise"),
}
"""Name of each file and the command whose output it gets; ``{uplink}`` is the underlay interface."""
FILES = (
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/softnet_stat",
    "/proc/meminfo",
    "/proc/loadavg",
    "/etc/os-release",
    "/sys/fs/cgroup/system.slice/flanpy.service/memory.current",
)
SETTINGS = ("net/ipv4/ip_forward", "net/ipv4/conf", "net/ipv6/conf", "net/core", "net/bridge")
WANTED_SETTINGS = (
    *("ip_forward", "rp_filter", "forwarding", "accept_local", "disable_ipv6", "mtu"),
    *("rmem_max", "wmem_max", "netdev_max_backlog", "bpf_jit_enable"),
    *("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the archive: its name, and either what it holds or why it could not be had."""

    name: str
    text: str
    problem: str = ""


def gather(run_dir: Path, environment: Mapping[str, str], log_file: Path | None = None) -> list[Part]:
    """All parts, without secrets."""
    answers = {question: _answer(run_dir, question) for question in QUESTIONS}
    known = known_secrets(environment, _options(answers["options"])) | of_process(_pid(answers["status"]))
    uplink = _uplink(answers["status"])
    parts = [
        _part("versions.txt", _versions),
        *(Part(f"agent-{name}.json", text, problem) for name, (text, problem) in answers.items()),
        _part("environment.txt", lambda: _environment(environment)),
        _part("doctor.txt", lambda: _doctor(run_dir)),
        *(_tool(name, command, uplink) for name, command in TOOLS.items()),
        _part("settings.txt", lambda: "".join(_settings())),
        *(_part(f"files/{path.strip('/').replace('/', '-')}.txt", lambda path=path: Path(path).read_text()) for path in FILES),  # type: ignore[misc]
    ]
    if log_file is not None:
        parts.append(_part("log-file.txt", lambda: _tail(log_file)))
    return [
        Part(part.name, remove_secrets(part.text, known)[:PART_BYTES_MAX], remove_secrets(part.problem, known)) for part in parts
    ]


def pack(parts: Iterable[Part], folder: str) -> bytes:
    """The archive (tar, gzip)."""
    parts = list(parts)
    lines = [f"{part.name:32} {part.problem or f'{len(part.text)} characters'}" for part in parts]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for part in (Part("contents.txt", "\n".join(lines) + "\n"), *parts):
            if not part.problem:
                data = part.text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{folder}/{part.name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def folder_name() -> str:
    """What the archive unpacks to."""
    return f"flanpy-report-{platform.node() or 'host'}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


# ------------------------------------------------------------------------------------------------ secrets


def known_secrets(environment: Mapping[str, str], options: Mapping[str, Any]) -> frozenset[str]:
    """Values that must not appear: those of secret flags in the environment, the options file and the agent's own keys."""
    found = {environment.get(variable, "") for flag in AGENT_FLAGS if flag.secret for variable in flag.environment()}
    named = options.get("etcd-keyfile"), f"{options.get('state-dir', '')}/wireguard-key"
    for name in named:
        found |= _lines(Path(str(name))) if name else set()
    return frozenset(found - {""}) | _from_file(environment.get("FLANPY_CONFIG", ""))


def of_process(pid: int | None) -> frozenset[str]:
    """The same of the running agent, whose environment and command line may tell other secrets than ours (proc(5); root reads them)."""
    if pid is None:
        return frozenset()
    words = _words(Path(f"/proc/{pid}/cmdline"))
    pairs = (variable.partition("=") for variable in _words(Path(f"/proc/{pid}/environ")))
    environment = {name: value for name, _, value in pairs}
    found = known_secrets(environment, {})
    for flag in [f"--{flag.name}" for flag in AGENT_FLAGS if flag.secret]:
        found |= frozenset(_values(words, flag))
    return found.union(*(_from_file(name) for name in _values(words, "--config")))


def _words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _values(words: list[str], flag: str) -> list[str]:
    """What a flag was given on a command line, as ``--flag value`` or ``--flag=value``."""
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    return joined + [after for word, after in itertools.pairwise(words) if word == flag]


def _lines(path: Path) -> set[str]:
    """The lines of a key file: none of them may be anywhere else."""
    try:
        return {line.strip() for line in path.read_text(errors="replace").splitlines()[:500] if len(line) > 16}
    except OSError:
        return set()


def _from_file(name: str) -> frozenset[str]:
    """The secrets of an options file."""
    if not name:
        return frozenset()
    from flanpy.config.options import read_toml

    try:
        values = read_toml(Path(name))
    except FlanpyError:
        return frozenset()
    return frozenset(str(values[flag.name]) for flag in AGENT_FLAGS if flag.secret and values.get(flag.name))


# ------------------------------------------------------------------------------------------------ parts


def _part(name: str, make: Callable[[], str]) -> Part:
    try:
        return Part(name, make())
    except (OSError, FlanpyError, subprocess.SubprocessError, ValueError, KeyError) as error:
        return Part(name, "", f"not there: {_reason(error)}")


def _reason(error: Exception) -> str:
    """In words: neither numbers of errors nor argument vectors."""
    if isinstance(error, FileNotFoundError) and not str(error.filename).startswith("/"):
        return f"{error.filename} is not installed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} took longer than {error.timeout:g} s"
    return str(error)


def _answer(run_dir: Path, question: str) -> tuple[str, str]:
    try:
        return json.dumps(ask(run_dir, question), indent=1), ""
    except FlanpyError as error:
        return "", f"not there: {error}"


def _options(answer: tuple[str, str]) -> dict[str, Any]:
    return dict(json.loads(answer[0])["options"]) if answer[0] else {}


def _pid(answer: tuple[str, str]) -> int | None:
    return int(json.loads(answer[0])["pid"]) if answer[0] else None


def _uplink(answer: tuple[str, str]) -> str:
    return str(json.loads(answer[0])["uplink"]["name"]) if answer[0] else "lo"


def _versions() -> str:
    return "".join(
        f"{name:8} {text}\n"
        for name, text in (
            ("flanpy", __version__),
            ("python", platform.python_version()),
            ("kernel", " ".join(os.uname())),
            ("libc", " ".join(platform.libc_ver())),
            ("time", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
            ("cpus", str(os.cpu_count())),
        )
    )


def _environment(environment: Mapping[str, str]) -> str:
    secret = {variable for flag in AGENT_FLAGS if flag.secret for variable in flag.environment()}
    ours = {name: value for name, value in environment.items() if name.startswith(("FLANPY_", "FLANNELD_"))}
    return (
        "".join(f"{name}={'<removed>' if name in secret else value}\n" for name, value in sorted(ours.items()))
        or "nothing of ours\n"
    )


def _doctor(run_dir: Path) -> str:
    from flanpy.agent.doctor import examine

    return json.dumps([asdict(check) for check in examine(run_dir)], indent=1)


def _tool(name: str, command: tuple[str, ...], uplink: str) -> Part:
    argv = [uplink if word == "{uplink}" else word for word in command]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}

    def run() -> str:
        done = subprocess.run(argv, capture_output=True, timeout=TOOL_TIMEOUT_S, env=environment, check=False)
        return (done.stdout + done.stderr)[:PART_BYTES_MAX].decode(errors="replace") + f"\n[exit status {done.returncode}]\n"

    return _part(f"{name}.txt", run)


def _settings() -> Iterator[str]:
    """The settings of /proc/sys that matter to an overlay."""
    root = Path("/proc/sys")
    for top in SETTINGS:
        place = root / top
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.name in WANTED_SETTINGS and path.is_file():
                try:
                    yield f"{path.relative_to(root)} = {path.read_text().strip()}\n"
                except OSError as error:
                    yield f"{path.relative_to(root)}: {error.strerror}\n"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - PART_BYTES_MAX))
        return file.read().decode(errors="replace")
