"""From subnet.env to what a Docker host passes to dockerd, in the form that flannel's mk-docker-opts.sh writes; no I/O.

    DOCKER_OPT_BIP="--bip=10.5.72.1/24"      docker0 has the node's subnet        DOCKER_OPTS="--bip=... --ip-masq=... --mtu=..."
    DOCKER_OPT_IPMASQ="--ip-masq=false"      somebody masquerades, but only one
    DOCKER_OPT_MTU="--mtu=1472"              containers' packets fit the overlay

One variable for each option, all of them in one variable, or both. The file is read by shells and by systemd's EnvironmentFile, which
agree on double quotes with backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from flanpy.core.subnet_env import SubnetEnv
from flanpy.errors import UsageError

PREFIX = "DOCKER_OPT_"
DEFAULT_KEY = "DOCKER_OPTS"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def docker_options(subnet: SubnetEnv, *, ip_masq: bool = True, ipv6: bool = False) -> dict[str, str]:
    """dockerd's options by variable. ``ip_masq``: say whether Docker is to masquerade; ``ipv6``: what dual stack needs, too."""
    found = {f"{PREFIX}MTU": f"--mtu={subnet.mtu_bytes}"}
    if (ipv4 := subnet.subnets.ipv4) is not None:
        found[f"{PREFIX}BIP"] = f"--bip={ipv4[1]}/{ipv4.prefixlen}"
    if ip_masq:
        found[f"{PREFIX}IPMASQ"] = f"--ip-masq={'false' if subnet.ip_masq else 'true'}"
    if ipv6 and subnet.subnets.ipv6 is not None:
        found[f"{PREFIX}IPV6"] = f"--ipv6 --fixed-cidr-v6={subnet.subnets.ipv6}"
    return found


def variables(
    options: Mapping[str, str], *, single: bool, combined: bool, key: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """What the file sets. As with flannel's script, further DOCKER_OPT_... variables of the environment are options too, and what the
    combined variable has there already comes first. Raises UsageError for a key that no shell takes.
    """
    if not _NAME.fullmatch(key):
        raise UsageError(f"-k {key}: not the name of a variable, such as {DEFAULT_KEY}")
    more = {name: value for name, value in environment.items() if name.startswith(PREFIX) and _NAME.fullmatch(name)}
    every = dict(sorted({**more, **options}.items()))
    found = every if single else {}
    if combined:
        found[key] = " ".join(filter(None, (environment.get(key, "").strip(), *every.values())))
    return {name: " ".join(value.splitlines()) for name, value in found.items()}  # systemd would end one at a line break


def render(values: Mapping[str, str]) -> str:
    """The file: values in double quotes, so that a shell and systemd read the same."""
    escaped = {name: re.sub(r'([\\"$`])', r"\\\1", value) for name, value in values.items()}
    return "".join(f'{name}="{value}"\n' for name, value in escaped.items())
