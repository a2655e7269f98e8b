"""The cluster's network config: the JSON at ``<prefix>/config``, checked as flannel checks it and stricter; no I/O.

    {"Network": "10.5.0.0/16", "SubnetLen": 24, "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.255.0",
     "EnableIPv4": true, "EnableIPv6": false, "EnableNFTables": false, "Backend": {"Type": "udp", "Port": 8285}}

flannel's rules and defaults hold. What flannel passes over is an error here: unknown keys (with the key that was probably meant), a
key given twice, SubnetMin above SubnetMax. All problems are reported at once, a line for each, with its key path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar

from flanpy.config.backend_options import read_backend
from flanpy.config.json_fields import Check, Field, Mended, boolean, integer, read_fields, shown
from flanpy.errors import ConfigError
from flanpy.model import NetworkConfig
from flanpy.strict_json import JsonError, JsonObject, parse_json

EXAMPLE = '{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}'
MAX_BYTES = 1 << 20

N = TypeVar("N", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class _Family(Generic[N]):
    """What differs between IPv4 and IPv6: key names and limits."""

    version: int
    network: type[N]
    prefix: str
    """``""`` or ``"IPv6"``, before the key names."""
    longest: int
    """Longest subnet that leaves room for hosts: flannel's 30 and 126."""
    usual: int
    """Default length where the network is wide enough."""
    example: str

    def key(self, name: str) -> str:
        """The key's full name."""
        return f"{self.prefix}{name}"


_IPV4 = _Family(4, IPv4Network, "", 30, 24, "10.5.0.0/16")
_IPV6 = _Family(6, IPv6Network, "IPv6", 126, 64, "fd00:5::/48")


@dataclass(frozen=True, slots=True)
class _Ranges(Generic[N]):
    """The checked settings of one family."""

    network: N | None = None
    subnet_len: int = 0
    low: N | None = None
    high: N | None = None


def parse_network_config(text: str | bytes) -> NetworkConfig:
    """The config that ``text`` holds, defaults filled in; raises ConfigError with every problem."""
    problems: list[str] = []
    read = read_fields("", _root(text), _FIELDS, problems)
    backend = read_backend(read["Backend"], problems)
    ipv4: _Ranges[IPv4Network] = _ranges(_IPV4, read, problems) if read["EnableIPv4"] else _Ranges()
    ipv6: _Ranges[IPv6Network] = _ranges(_IPV6, read, problems) if read["EnableIPv6"] else _Ranges()
    if not read["EnableIPv4"] and not read["EnableIPv6"]:
        problems.append("EnableIPv4: false, and EnableIPv6 is not true: at least one of them is needed")
    if problems:
        raise ConfigError(problems)
    return NetworkConfig(
        network=ipv4.network,
        subnet_len=ipv4.subnet_len,
        subnet_min=ipv4.low,
        subnet_max=ipv4.high,
        ipv6_network=ipv6.network,
        ipv6_subnet_len=ipv6.subnet_len,
        ipv6_subnet_min=ipv6.low,
        ipv6_subnet_max=ipv6.high,
        enable_ipv4=bool(read["EnableIPv4"]),
        enable_ipv6=bool(read["EnableIPv6"]),
        enable_nftables=bool(read["EnableNFTables"]),
        backend=backend,
    )


def render_network_config(config: NetworkConfig) -> str:
    """JSON with every value spelled out; it parses to an equal config, and flanneld reads it too."""
    members: dict[str, object] = {}
    if config.network and config.subnet_min and config.subnet_max:
        members["Network"], members["SubnetLen"] = str(config.network), config.subnet_len
        members["SubnetMin"], members["SubnetMax"] = str(config.subnet_min[0]), str(config.subnet_max[0])
    if config.ipv6_network and config.ipv6_subnet_min and config.ipv6_subnet_max:
        members["IPv6Network"], members["IPv6SubnetLen"] = str(config.ipv6_network), config.ipv6_subnet_len
        members["IPv6SubnetMin"], members["IPv6SubnetMax"] = str(config.ipv6_subnet_min[0]), str(config.ipv6_subnet_max[0])
    members["EnableIPv4"], members["EnableIPv6"] = config.enable_ipv4, config.enable_ipv6
    members["EnableNFTables"] = config.enable_nftables
    members["Backend"] = {"Type": config.backend.type, **config.backend.options}
    return json.dumps(members, indent=2) + "\n"


def _root(text: str | bytes) -> JsonObject:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"network config: {len(text)} bytes (at most {MAX_BYTES})")
    try:
        root = parse_json(text, judge=False)
    except JsonError as exc:
        raise ConfigError(f"network config: not JSON: {exc}; for example {EXAMPLE}") from exc
    if not isinstance(root, JsonObject):
        raise ConfigError(f"network config: {shown(root)} is not an object; for example {EXAMPLE}")
    return root


# ------------------------------------------------------------------------------------------------ one family


def _ranges(family: _Family[N], read: dict[str, object], problems: list[str]) -> _Ranges[N]:
    """Network, SubnetLen, SubnetMin and SubnetMax by flannel's rules; empty after a problem that leaves nothing to go on."""
    network = read[family.key("Network")]
    if not isinstance(network, family.network):
        if not any(problem.startswith(f"{family.key('Network')}:") for problem in problems):
            problems.append(f"{family.key('Network')}: missing, for example {family.example}")
        return _Ranges()
    length = _subnet_len(family, network, read[family.key("SubnetLen")], problems)
    if length is None:
        return _Ranges()
    step = 1 << (network.max_prefixlen - length)
    first, last = int(network.network_address) + step, int(network.network_address) + network.num_addresses - step
    low = _bound(family, "SubnetMin", read, network, length, first, problems)
    high = _bound(family, "SubnetMax", read, network, length, last, problems)
    if low is not None and high is not None and low > high:
        problems.append(
            f"{family.key('SubnetMin')}: {low[0]} is above {family.key('SubnetMax')} {high[0]}: no subnet can be leased"
        )
    return _Ranges(network, length, low, high)


def _subnet_len(family: _Family[N], network: N, given: object, problems: list[str]) -> int | None:
    """The length of a node's subnet; 0 stands for the default, as for flannel."""
    narrowest, shortest = family.longest - 2, network.prefixlen + 2
    if network.prefixlen > narrowest:
        problems.append(f"{family.key('Network')}: {network} is too narrow to hold four subnets (at most /{narrowest})")
        return None
    if not isinstance(given, int) or given == 0:
        return max(family.usual, shortest)
    if shortest <= given <= family.longest:
        return given
    reason = "leaves no room for a host" if given > family.longest else f"does not cut {network} into four subnets or more"
    problems.append(f"{family.key('SubnetLen')}: {given} {reason} ({shortest}..{family.longest})")
    return None


def _bound(
    family: _Family[N], name: str, read: dict[str, object], network: N, length: int, default: int, problems: list[str]
) -> N | None:
    """The first or last subnet that may be leased, as a network; the unspecified address stands for the default."""
    address = read[family.key(name)]
    first = default if address is None or int(address) == 0 else int(address)  # type: ignore[call-overload]
    off = first % (1 << (network.max_prefixlen - length))
    if not int(network.network_address) <= first < int(network.network_address) + network.num_addresses:
        problems.append(f"{family.key(name)}: {address} is not in {network}")
        return None
    if off:
        right = family.network((first - off, length))[0]
        problems.append(f"{family.key(name)}: {address} is not the first address of a /{length} ({right} is)")
        return None
    return family.network((first, length))


# ------------------------------------------------------------------------------------------------ the keys


def _network(family: _Family[N]) -> Check:
    def check(value: object) -> object:
        try:
            if not isinstance(value, str) or not value.partition("/")[2].isdigit():
                raise ValueError("no prefix length")
            network = family.network(value, strict=False)
        except ValueError:
            raise ValueError(f"{shown(value)} is not an IPv{family.version} network such as {family.example}") from None
        if network.network_address != network.network_address.__class__(value.partition("/")[0]):
            _refuse_special(network)
            raise Mended(f"{value} has bits set after the prefix; {network} was probably meant", network)
        _refuse_special(network)
        return network

    return check


def _refuse_special(network: IPv4Network | IPv6Network) -> None:
    """No pod can live at these addresses, and a route to them would take the machine's own traffic."""
    if network.prefixlen == 0:
        raise ValueError(f"{network} is every address there is")
    special = _SPECIAL4 if network.version == 4 else _SPECIAL6
    for other in special:
        if network.overlaps(other):
            raise ValueError(f"{network} overlaps {other}, where no pod can live")


_SPECIAL4 = (IPv4Network("127.0.0.0/8"), IPv4Network("224.0.0.0/4"))
_SPECIAL6 = (IPv6Network("::1/128"), IPv6Network("fe80::/10"), IPv6Network("ff00::/8"))


def _address(kind: type[IPv4Address] | type[IPv6Address], example: str) -> Check:
    def check(value: object) -> object:
        try:
            if isinstance(value, str) and "%" not in value:
                return kind(value)
        except ValueError:
            pass
        raise ValueError(f"{shown(value)} is not an address such as {example}")

    return check


_FIELDS = (
    Field("EnableIPv4", True, boolean),
    Field("EnableIPv6", False, boolean),
    Field("EnableNFTables", False, boolean),
    Field("Network", None, _network(_IPV4)),
    Field("IPv6Network", None, _network(_IPV6)),
    Field("SubnetMin", None, _address(IPv4Address, "10.5.1.0")),
    Field("SubnetMax", None, _address(IPv4Address, "10.5.255.0")),
    Field("IPv6SubnetMin", None, _address(IPv6Address, "fd00:5:0:1::")),
    Field("IPv6SubnetMax", None, _address(IPv6Address, "fd00:5:0:ffff::")),
    Field("SubnetLen", 0, integer(0, 128, "a prefix length")),
    Field("IPv6SubnetLen", 0, integer(0, 128, "a prefix length")),
    Field("Backend", None, lambda value: value),
)
