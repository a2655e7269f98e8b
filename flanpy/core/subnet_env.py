"""The text of flannel's subnet.env: written last of all, it is the mark that the CNI plugin waits for; no I/O here.

FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24            first usable address of the subnet, with the subnet's length
FLANNEL_IPV6_NETWORK=fd00:5::/48       (if enabled)
FLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64   (if enabled)
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TypeVar

from flanpy.errors import ConfigError
from flanpy.model import Network, NetworkConfig, Subnets

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What subnet.env says; a family that is not enabled is None.

    A flanneld with several networks writes them with commas between: ``more_networks`` holds all after the first.
    """

    network: IPv4Network | None
    ipv6_network: IPv6Network | None
    subnets: Subnets
    mtu_bytes: int
    ip_masq: bool
    more_networks: tuple[Network, ...] = ()


def render_subnet_env(config: NetworkConfig, subnets: Subnets, mtu_bytes: int, ip_masq: bool) -> str:
    """The file's text for a node that holds ``subnets``."""
    lines: list[str] = []
    if subnets.ipv4 is not None:
        lines += [f"FLANNEL_NETWORK={config.network}", f"FLANNEL_SUBNET={subnets.ipv4[1]}/{subnets.ipv4.prefixlen}"]
    if subnets.ipv6 is not None:
        lines += [
            f"FLANNEL_IPV6_NETWORK={config.ipv6_network}",
            f"FLANNEL_IPV6_SUBNET={subnets.ipv6[1]}/{subnets.ipv6.prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={mtu_bytes}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "\n".join(lines) + "\n"


def parse_subnet_env(text: str) -> SubnetEnv:
    """What a subnet.env says, ours or flanneld's; raises ConfigError with all problems. Unknown variables are passed over."""
    lines = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    problems: list[str] = []

    def take(name: str, parse: Callable[[str], T], example: str, needed: bool = False) -> T | None:
        if name not in lines:
            problems.extend([f"subnet.env: {name} is missing, for example {name}={example}"] if needed else [])
            return None
        try:
            return parse(lines[name].strip().strip("\"'"))
        except ValueError:
            problems.append(f"subnet.env: {name}={lines[name][:60]!a} is wrong, for example {name}={example}")
            return None

    network, *more = take("FLANNEL_NETWORK", _networks, "10.5.0.0/16") or [None]
    network6, *more6 = take("FLANNEL_IPV6_NETWORK", _networks6, "fd00:5::/48") or [None]
    subnet6 = take("FLANNEL_IPV6_SUBNET", _interface6, "fd00:5:0:7::1/64")
    subnet = take("FLANNEL_SUBNET", _interface, "10.5.72.1/24", needed="FLANNEL_IPV6_SUBNET" not in lines)
    mtu = take("FLANNEL_MTU", _mtu, "1472", needed=True)
    masq = take("FLANNEL_IPMASQ", _boolean, "false")
    if problems or mtu is None:
        raise ConfigError(problems)
    return SubnetEnv(network, network6, Subnets(subnet, subnet6), mtu, bool(masq), tuple(filter(None, [*more, *more6])))


def _networks(text: str) -> list[IPv4Network | None]:
    return [IPv4Network(part) for part in text.split(",")]


def _networks6(text: str) -> list[IPv6Network | None]:
    return [IPv6Network(part) for part in text.split(",")]


def _interface(text: str) -> IPv4Network:
    return IPv4Network(IPv4Interface(text).network)


def _interface6(text: str) -> IPv6Network:
    return IPv6Network(IPv6Interface(text).network)


def _mtu(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 68 <= int(text[:6]) <= 65535:
        raise ValueError("not an MTU (68 to 65535)")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("neither true nor false")
    return text == "true"
