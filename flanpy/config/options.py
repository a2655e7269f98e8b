"""The options of ``flanpy agent``, checked: what command line, environment and options file say by the table of ``agent_flags``.

Text to frozen values; nothing on the machine is touched here but the options file that ``--config`` names.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import stat
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from flanpy.config.agent_flags import AGENT_FLAGS, GROUPS
from flanpy.config.flags import add_flags, resolve
from flanpy.errors import UsageError
from flanpy.model import Address, FirewallTool

PIPE_PATIENCE_S = 3.0
"""Limit of reading an options file that is a pipe; whoever asks for a reload waits 5 s for the answer."""
FILE_BYTES_MAX = 1 << 20
"""Of an options file; what is behind it is not read."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """All options of the agent, checked; names as the flags'."""

    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
    etcd_keyfile: str
    etcd_certfile: str
    etcd_cafile: str
    etcd_username: str
    etcd_password: str
    embedded_etcd: str
    iface: tuple[str, ...]
    iface_regex: tuple[str, ...]
    iface_can_reach: Address | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    subnet_file: Path
    subnet_lease_renew_margin: int
    peer_grace: int
    etcd_loss_grace: int
    release_on_exit: bool
    state_dir: Path
    run_dir: Path
    ip_masq: bool
    ip_masq_fully_random_disable: bool
    iptables_forward_rules: bool
    firewall: FirewallTool
    iptables_resync: int
    ip_blackhole_route: bool
    pod_registry: bool
    cni_data_dir: Path
    datapath: str
    source_check: bool
    ebpf_bypass: bool
    teardown: bool
    datapath_user: str
    queues: int
    spin_us: int
    keep_capabilities: bool
    healthz_ip: IPv4Address
    healthz_port: int
    peer_probe_interval: int
    peer_probe_port: int
    log_format: str
    log_level: str

    def __repr__(self) -> str:
        """Without the password: options end up in logs and bug reports."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "etcd_password"}
        return f"AgentOptions({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser all flags of the agent."""
    add_flags(parser, AGENT_FLAGS, GROUPS)
    parser.add_argument("--no-source-check", dest="source_check", action="store_const", const="false", help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="options file (TOML); its keys are the names of these flags")


def load_agent_options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> AgentOptions:
    """Options from command line, environment and options file. Raises UsageError with every problem, one a line."""
    name = arguments.config or environment.get("FLANPY_CONFIG")
    values = resolve(AGENT_FLAGS, vars(arguments), environment, read_toml(Path(name)) if name else {}, str(name))
    options = AgentOptions(**values)
    problems = list(_contradictions(options))
    if problems:
        raise UsageError("\n".join(problems))
    return options


def _contradictions(options: AgentOptions) -> list[str]:
    problems = []
    if bool(options.etcd_keyfile) != bool(options.etcd_certfile):
        problems.append("--etcd-keyfile and --etcd-certfile belong together: give both or neither")
    if options.etcd_password and not options.etcd_username:
        problems.append("--etcd-password needs --etcd-username")
    if options.healthz_ip is None:
        problems.append("--healthz-ip needs an address such as 0.0.0.0")
    return problems


def read_toml(path: Path) -> dict[str, Any]:
    """The options file as a flat table. Raises UsageError when it cannot be read or is no TOML."""
    try:
        return tomllib.loads(_read(path).decode())
    except OSError as error:
        raise UsageError(f"--config: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path}: not TOML: {error}") from error


def _read(path: Path) -> bytes:
    """The bytes of a file, or of a pipe whose writer is done soon: a reload waits for it, and the agent with it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        if not stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            return file.read(FILE_BYTES_MAX) or b""
        return _read_pipe(path, file)


def _read_pipe(path: Path, file: io.FileIO) -> bytes:
    """All that its writer has to say. Raises UsageError when there is none, or no end of it."""
    poll, deadline = select.poll(), time.monotonic() + PIPE_PATIENCE_S
    poll.register(file, select.POLLIN)
    data = b""
    while (more := file.read(FILE_BYTES_MAX)) != b"":
        data += more or b""
        if len(data) > FILE_BYTES_MAX:
            raise UsageError(f"--config: {path}: more than {FILE_BYTES_MAX} bytes; that is no options file")
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise UsageError(f"--config: {path}: no end of it within {PIPE_PATIENCE_S:g} s; give a regular file")
    if not data:
        raise UsageError(f"--config: {path}: a pipe without a writer; give a regular file")
    return data
