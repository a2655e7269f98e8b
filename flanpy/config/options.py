"""The options of ``flanpy agent``: flanneld's flags with flanneld's meaning, and our own.

Text to frozen values; nothing on the machine is touched here but the options file that ``--config`` names.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from flanpy.config.etcd_flags import ETCD_FLAGS
from flanpy.config.flags import Flag, add_flags, resolve
from flanpy.errors import UsageError
from flanpy.model import Address, FirewallTool

GROUPS = {
    "etcd": "etcd",
    "interface": "underlay interface (looked for in this order; default: the default route's interface)",
    "lease": "lease and files",
    "rules": "masquerade and forward rules",
    "pods": "pods",
    "datapath": "datapath",
    "agent": "agent",
}


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def _number(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}{unit and ' ' + unit}")
        return int(text)

    return parse


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address such as 192.0.2.7") from None


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an address such as 192.0.2.7") from None


def _ipv6(text: str) -> IPv6Address | None:
    try:
        return ipaddress.IPv6Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address such as 2001:db8::7") from None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def _path(text: str) -> Path:
    if not text:
        raise ValueError("needs a path")
    return Path(text)


def _embedded(text: str) -> str:
    if not re.fullmatch(r"[0-9a-zA-Z.\[\]:-]+:[0-9]{1,5}", text):
        raise ValueError(f"{text!r} is not ADDRESS:PORT such as 127.0.0.1:2379")
    return text


AGENT_FLAGS = (
    *ETCD_FLAGS,
    Flag(
        "embedded-etcd",
        "start and supervise an etcd of our own, data in the state directory (for a trial or the first node); "
        "without a value at 127.0.0.1:2379",
        "",
        _embedded,
        "ADDRESS:PORT",
        "etcd",
        const="127.0.0.1:2379",
        flannel=False,
    ),
    Flag(
        "iface",
        "interface by name or address; may be repeated, the first that exists is taken",
        (),
        str,
        "NAME|IP",
        "interface",
        True,
    ),
    Flag("iface-regex", "the same by a regular expression on names and addresses", (), _pattern, "REGEX", "interface", True),
    Flag("iface-can-reach", "the interface by which this address is reached", None, _address, "IP", "interface"),
    Flag("public-ip", "address that peers reach us by, if it is not the interface's own (NAT)", None, _ipv4, "IP", "interface"),
    Flag("public-ipv6", "the same for IPv6", None, _ipv6, "IP", "interface"),
    Flag(
        "subnet-file",
        "where the subnet is written for CNI, once everything is ready",
        Path("/run/flannel/subnet.env"),
        _path,
        "FILE",
        "lease",
    ),
    Flag(
        "subnet-lease-renew-margin",
        "renew the lease this long before it ends, minutes",
        60,
        _number(1, 1439, "(minutes)"),
        "MINUTES",
        "lease",
    ),
    Flag(
        "peer-grace",
        "keep sending to a peer this long after its lease has expired or was deleted, seconds; a peer that stops with "
        "--release-on-exit goes at once",
        0,
        _number(0, 604800, "(seconds)"),
        "SECONDS",
        "lease",
        flannel=False,
        live=True,
    ),
    Flag(
        "etcd-loss-grace",
        "the same for peers whose leases etcd has lost with its data: wiped, or restored from an old backup",
        600,
        _number(0, 604800, "(seconds)"),
        "SECONDS",
        "lease",
        flannel=False,
        live=True,
    ),
    Flag(
        "release-on-exit",
        "give the subnet back when the agent stops",
        False,
        boolean=True,
        group="lease",
        flannel=False,
        live=True,
    ),
    Flag(
        "state-dir",
        "what outlives a reboot: node id, embedded etcd",
        Path("/var/lib/flanpy"),
        _path,
        "DIR",
        "lease",
        flannel=False,
    ),
    Flag("run-dir", "what does not: lock, control socket", Path("/run/flanpy"), _path, "DIR", "lease", flannel=False),
    Flag("ip-masq", "masquerade traffic that leaves the overlay network", False, boolean=True, group="rules", live=True),
    Flag(
        "ip-masq-fully-random-disable", "no random source ports for masquerading", False, boolean=True, group="rules", live=True
    ),
    Flag(
        "iptables-forward-rules",
        "accept forwarding from and to the overlay network",
        True,
        boolean=True,
        group="rules",
        live=True,
    ),
    Flag(
        "firewall",
        "what keeps these rules; auto: nft if EnableNFTables is set, else nft for masquerading and iptables for forwarding, as far as "
        "they are installed (docs/firewall.md)",
        "auto",
        _choice("auto", "nft", "iptables"),
        "auto|nft|iptables",
        "rules",
        flannel=False,
        live=True,
    ),
    Flag(
        "iptables-resync",
        "check the rules this often where the kernel does not tell of changes, seconds",
        5,
        _number(1, 86400, "(seconds)"),
        "SECONDS",
        "rules",
        live=True,
    ),
    Flag("ip-blackhole-route", "blackhole our subnet's addresses that no pod has", False, boolean=True, group="rules", live=True),
    Flag(
        "pod-registry",
        "register this node's pods in etcd and know those of the others (flanpy pods); a pod may then keep its address on another node "
        "(docs/pods.md)",
        False,
        boolean=True,
        group="pods",
        flannel=False,
    ),
    Flag(
        "cni-data-dir",
        "where the CNI plugin keeps what is attached (its dataDir)",
        Path("/var/lib/cni/flannel"),
        _path,
        "DIR",
        "pods",
        flannel=False,
    ),
    Flag(
        "datapath",
        "auto takes the best that works on this machine",
        "auto",
        _choice("auto", "userspace", "ebpf"),
        "auto|userspace|ebpf",
        "datapath",
        flannel=False,
    ),
    Flag(
        "source-check",
        "take encapsulated packets only from the peer that has the inner source's subnet; "
        "--no-source-check is for peers behind NAT",
        True,
        boolean=True,
        group="datapath",
        flannel=False,
    ),
    Flag(
        "ebpf-bypass",
        "with ebpf, carry packets between underlay and pod bridge past the host's forwarding: faster, but its firewall, network "
        "policy and masquerading do not see them (docs/ebpf.md)",
        False,
        boolean=True,
        group="datapath",
        flannel=False,
    ),
    Flag(
        "teardown",
        "remove the datapath when the agent stops; without it the datapath stays and carries on",
        False,
        boolean=True,
        group="datapath",
        flannel=False,
        live=True,
    ),
    Flag(
        "datapath-user",
        "whom the datapath process runs as, a name, UID or UID:GID; without it flanpy, or where there is no such user a number of its own",
        "",
        str,
        "USER",
        "datapath",
        flannel=False,
    ),
    Flag("queues", "TUN queues, each with a thread for either direction", 1, _number(1, 64), "N", "datapath", flannel=False),
    Flag(
        "spin-us",
        "busy wait after traffic before a thread sleeps, microseconds; 0 saves CPU and costs latency",
        150,
        _number(0, 10000, "(microseconds)"),
        "US",
        "datapath",
        flannel=False,
    ),
    Flag(
        "keep-capabilities",
        "give up no capability at start; for commands of the extension backend that need more than NET_ADMIN",
        False,
        boolean=True,
        group="agent",
        flannel=False,
    ),
    Flag("healthz-ip", "address of the health server", IPv4Address("0.0.0.0"), _ipv4, "IP", "agent", live=True),
    Flag("healthz-port", "its TCP port, 0: no health server", 0, _number(0, 65535), "PORT", "agent", live=True),
    Flag(
        "peer-probe-interval",
        "ask the agents of other nodes over the overlay this often whether the path works, seconds; 0: neither ask nor answer",
        10,
        _number(0, 3600, "(seconds)"),
        "SECONDS",
        "agent",
        flannel=False,
        live=True,
    ),
    Flag(
        "peer-probe-port",
        "UDP port of these probes, on this node's tunnel address alone; each lease tells its node's",
        8286,
        _number(1, 65535),
        "PORT",
        "agent",
        flannel=False,
        live=True,
    ),
    Flag(
        "log-format",
        "form of the log on standard error",
        "text",
        _choice("text", "json"),
        "text|json",
        "agent",
        flannel=False,
        live=True,
    ),
    Flag(
        "log-level",
        "least level that is logged",
        "info",
        _choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "agent",
        flannel=False,
        live=True,
    ),
)


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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path}: not TOML: {error}") from error
