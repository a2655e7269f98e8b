"""flannel's extension backend: the operator's commands carry the packets, we tell them who the peers are; no I/O here.

    PreStartupCommand     before the lease; what it prints becomes our BackendData, a JSON string
    PostStartupCommand    once the lease is there             NETWORK, SUBNET, PUBLIC_IP
    SubnetAddCommand      for each peer, also at every start  SUBNET, PUBLIC_IP, on standard input the peer's BackendData
    SubnetRemoveCommand   for each peer that has gone         the same

A peer whose data changes goes and comes again. Commands are split into words as a shell does it, but no shell runs them: what stands
in a stranger's lease can never become a command. ``sh -c "..."`` is for whoever needs one.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from flanpy.backends.families import enabled_versions, families, missing_address, same_family, screened
from flanpy.core.membership import View
from flanpy.errors import ConfigError
from flanpy.model import (
    Command,
    DesiredState,
    FlanpyInfo,
    Hook,
    Lease,
    LocalFacts,
    NetworkConfig,
    NodeAttributes,
    Peer,
    Uplink,
)
from flanpy.strict_json import JsonError, parse_json, render_json

TYPE = "extension"
COMMANDS = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")


def startup(config: NetworkConfig) -> Command | None:
    """What is to be run before the lease; raises ConfigError when any of the commands cannot be split into words."""
    words = {name: _words(config, name) for name in COMMANDS}
    return Command(words[COMMANDS[0]]) if words[COMMANDS[0]] else None


def attributes(base: NodeAttributes, config: NetworkConfig, facts: LocalFacts) -> NodeAttributes:
    """What our lease says: what PreStartupCommand has printed."""
    data = None if facts.startup_output is None else render_json(facts.startup_output)
    return replace(base, backend_type=TYPE, backend_data=data, backend_v6_data=None, flanpy=FlanpyInfo(facts.node_id))


def reached_by(config: NetworkConfig) -> tuple[int, ...]:
    """What the commands do is not known; they are told an address of each family."""
    return enabled_versions(config)


def screen(config: NetworkConfig, own: Lease, view: View, uplink: Uplink) -> View:
    """The view without the peers whose data is no text."""

    def judge(peer: Peer) -> str | None:
        reasons = [missing_address(side) for side in same_family(peer, own.subnets)]
        if _text(peer) is None:
            reasons.append(
                f"BackendData: {peer.attributes.backend_data} is not a string, which is what PreStartupCommand has printed"
            )
        return next((reason for reason in reasons if reason is not None), None)

    return screened(view, judge)


def _text(peer: Peer) -> str | None:
    """What the peer's PreStartupCommand has printed; None when it is something else."""
    if peer.attributes.backend_data is None:
        return ""
    try:
        value = parse_json(peer.attributes.backend_data)
    except JsonError:
        return None
    return value if isinstance(value, str) and "\0" not in value else None


def plan(config: NetworkConfig, own: Lease, view: View, uplink: Uplink, generation: int) -> DesiredState:
    """The desired state of this machine: commands that have begun for us and for each peer."""
    hooks = [_own_hook(config, own)]
    add, remove = _words(config, "SubnetAddCommand"), _words(config, "SubnetRemoveCommand")
    for peer in view.peers:
        for side in same_family(peer, own.subnets):
            environment = (("SUBNET", str(side.subnet)), ("PUBLIC_IP", str(side.address)))
            begin, end = (Command(words, environment, f"{_text(peer)}\n") if words else None for words in (add, remove))
            hooks.append(Hook(f"peer {side.subnet}", begin, end))
    wanted = frozenset(hook for hook in hooks if hook.begin or hook.end)
    return DesiredState(tunnel=None, routes=frozenset(), table=None, mtu_bytes=uplink.mtu_bytes, hooks=wanted)


def _own_hook(config: NetworkConfig, own: Lease) -> Hook:
    words = _words(config, "PostStartupCommand")
    side = families(own.subnets, own.attributes)[0]
    network = config.network if side.version == 4 else config.ipv6_network
    environment = (("NETWORK", str(network)), ("SUBNET", str(side.subnet)), ("PUBLIC_IP", str(side.address)))
    return Hook("PostStartupCommand", Command(words, environment, "\n") if words else None, essential=True)


def _words(config: NetworkConfig, name: str) -> tuple[str, ...]:
    text = config.backend.options[name]
    assert isinstance(text, str)
    try:
        return tuple(shlex.split(text))
    except ValueError as exc:
        raise ConfigError(f"Backend.{name}: {exc}: {text!r}") from exc
