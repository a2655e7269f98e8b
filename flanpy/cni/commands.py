"""What each CNI command does. The agent may be away for all of them: only files and the delegate's plugins are needed.

    ADD     kept and sound? then the same answer again; else undo what is kept. Render, keep, delegate, keep the result.
    DEL     delegate what was kept, then forget it; nothing kept: nothing to do.
    CHECK   the address still lies in the node's subnet, and the delegate finds its devices, addresses and routes.
    GC      DEL for whatever is kept of this network and not listed; then the delegate's own GC, where it has one.
    STATUS  subnet.env is there, the plugins are, and say so themselves where they can.

The config is kept before the delegate starts: at whatever moment the plugin is killed, the runtime's DEL finds it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

from flanpy.cni import delegate, saved
from flanpy.cni.kept_address import MARK, kept_addresses, with_kept_addresses
from flanpy.cni.network import NetConf, parse_netconf, read_node, render_delegate
from flanpy.cni.protocol import (
    FIRST_VERSION,
    INVALID_CONFIG,
    INVALID_NETNS,
    NOT_AVAILABLE,
    OUTSIDE_SUBNET,
    UNKNOWN_CONTAINER,
    VERSIONS,
    Attachment,
    JsonDict,
    Request,
    at_least,
)
from flanpy.cni.saved import Saved
from flanpy.core.subnet_env import SubnetEnv
from flanpy.errors import CniError

VALID_ATTACHMENTS = "cni.dev/valid-attachments"


def run(request: Request) -> JsonDict | None:
    """Do what is asked; the result to print, or None. Raises CniError."""
    if request.command == "VERSION":
        return {"cniVersion": request.version, "supportedVersions": list(VERSIONS)}
    conf = parse_netconf(request.config, request.version)
    match request.command, request.attachment:
        case "ADD", Attachment() as attachment:
            return add(request, conf, attachment)
        case "DEL", Attachment() as attachment:
            remove(request, conf, attachment)
        case "CHECK", Attachment() as attachment:
            check(request, conf, attachment)
        case "GC", _:
            collect(request, conf)
        case _:
            status(request, conf)
    return None


def add(request: Request, conf: NetConf, attachment: Attachment) -> JsonDict:
    """Attach a pod; asked again for one that is attached, the answer is the same."""
    if _is_own_namespace(request.netns):
        raise CniError(INVALID_NETNS, f"CNI_NETNS={request.netns[:200]!a} is the host's own network namespace, not a pod's")
    earlier = saved.load(conf.data_dir, attachment)
    if earlier is not None:
        if earlier.netns == request.netns and earlier.result is not None and _is_sound(request, earlier):
            return {**earlier.result, "cniVersion": request.version}
        _undo(request, conf, earlier, request.netns if earlier.netns == request.netns else "")
    delegate.find_plugin(conf.delegate_type, request.path)  # nothing is kept of an ADD that could not begin
    kept = Saved(attachment, _render(request, conf, read_node(conf.subnet_file)), request.netns, pod=_pod(request))
    saved.store(conf.data_dir, kept)
    try:
        result = delegate.call("ADD", kept.config, request.path, attachment, request.netns)
        saved.store(conf.data_dir, replace(kept, result=result))
    except CniError:
        with suppress(CniError):  # the runtime's DEL comes back to it: the file stays
            _undo(request, conf, kept, request.netns)
        raise
    return {**result, "cniVersion": request.version}


def remove(request: Request, conf: NetConf, attachment: Attachment) -> None:
    """Detach a pod; how often it is asked makes no difference."""
    kept = saved.load(conf.data_dir, attachment)
    if kept is not None:
        given = request.config.get("prevResult")
        _undo(request, conf, kept, request.netns, given if isinstance(given, dict) else None)


def check(request: Request, conf: NetConf, attachment: Attachment) -> None:
    """Raise CniError when the attachment is not as ADD left it."""
    kept = saved.load(conf.data_dir, attachment)
    if kept is None:
        raise CniError(
            UNKNOWN_CONTAINER, f"{attachment.container_id}: nothing is kept about its {attachment.ifname}; was it added?"
        )
    result = request.config.get("prevResult") or kept.result
    if not isinstance(result, dict):
        raise CniError(INVALID_CONFIG, "prevResult: is missing; CHECK compares what is there with the result of ADD")
    if not kept.config.get(MARK):
        _compare_with_node(conf, result)
    delegate.call("CHECK", _with_result(kept.config, result), request.path, attachment, request.netns)


def collect(request: Request, conf: NetConf) -> None:
    """Detach all that is kept of this network and not listed as valid; all of it is tried, the first error is raised."""
    valid = _valid_attachments(request.config)
    failures: list[CniError] = []
    for kept in list(saved.all_saved(conf.data_dir)):
        if kept.config.get("name") == conf.name and not kept.is_one_of(valid):
            try:
                _undo(request, conf, kept, "")  # what is behind a stale path now may be anybody's
                print(f"flanpy: GC: {kept.attachment.container_id} {kept.attachment.ifname}: detached", file=sys.stderr)
            except CniError as error:
                failures.append(error)
    saved.sweep_abandoned(conf.data_dir)
    try:
        _delegate_if_known("GC", request, conf, {VALID_ATTACHMENTS: request.config[VALID_ATTACHMENTS]})
    except CniError as error:
        failures.append(error)
    if failures:
        raise failures[0]


def status(request: Request, conf: NetConf) -> None:
    """Raise CniError (50) with the cure when an ADD would fail now."""
    read_node(conf.subnet_file, NOT_AVAILABLE)
    for plugin in (conf.delegate_type, conf.ipam_type):
        try:
            delegate.find_plugin(plugin, request.path)
        except CniError as error:
            raise CniError(NOT_AVAILABLE, str(error)) from error
    _delegate_if_known("STATUS", request, conf, {})


# ------------------------------------------------------------------------------------------------ parts of them


def _render(request: Request, conf: NetConf, node: SubnetEnv) -> JsonDict:
    version = delegate.spoken_version(request.version, (conf.delegate_type, conf.ipam_type), request.path)
    rendered = render_delegate(conf, node, version)
    kept = kept_addresses(request.config, request.arguments, node) if conf.ipam_type == "host-local" else ()
    return with_kept_addresses(rendered, kept, node) if kept else rendered


def _pod(request: Request) -> JsonDict:
    """How the runtime calls the pod; Kubernetes' runtimes say it in CNI_ARGS."""
    names = {"namespace": "K8S_POD_NAMESPACE", "name": "K8S_POD_NAME"}
    return {key: request.arguments[name] for key, name in names.items() if name in request.arguments}


def _delegate_if_known(command: str, request: Request, conf: NetConf, extra: JsonDict) -> None:
    """Pass a command on to the delegate if it speaks a version that has it."""
    version = delegate.spoken_version(request.version, (conf.delegate_type, conf.ipam_type), request.path)
    if at_least(version, FIRST_VERSION[command]):
        delegate.call(command, render_delegate(conf, read_node(conf.subnet_file), version) | extra, request.path)


def _undo(request: Request, conf: NetConf, kept: Saved, netns: str, result: JsonDict | None = None) -> None:
    """Have the delegate detach what it attached, then forget it. What fails stays kept, for the next try."""
    config = _with_result(kept.config, result or kept.result)
    delegate.call("DEL", config, request.path, kept.attachment, "" if _is_own_namespace(netns) else netns)
    saved.remove(conf.data_dir, kept)


def _is_sound(request: Request, earlier: Saved) -> bool:
    """Whether the delegate still finds what an earlier ADD has made; a delegate that cannot be asked says no."""
    version = str(earlier.config.get("cniVersion") or VERSIONS[0])
    if version not in VERSIONS or not at_least(version, FIRST_VERSION["CHECK"]):
        return False
    try:
        config = _with_result(earlier.config, earlier.result)
        delegate.call("CHECK", config, request.path, earlier.attachment, request.netns)
    except CniError:
        return False
    return True


def _with_result(config: JsonDict, result: JsonDict | None) -> JsonDict:
    """The delegate's config with the result of ADD, in the version that the delegate speaks.

    A route without a gateway goes by that of the first address of its family; CHECK of the bridge plugin wants it said.
    """
    if result is None:
        return config
    gateways = {}
    for item in reversed(_objects(result.get("ips"))):
        with suppress(ValueError):
            gateways[ip_address(item.get("gateway", "")).version] = item["gateway"]
    routes = []
    for route in _objects(result.get("routes")):
        with suppress(ValueError):
            gateway = gateways.get(ip_interface(route.get("dst", "")).version)
            route = {"gw": gateway, **route} if gateway else route  # noqa: PLW2901
        routes.append(route)
    version = {"cniVersion": config["cniVersion"]} if "cniVersion" in config else {}
    return {**config, "prevResult": {**result, **version, **({"routes": routes} if routes else {})}}


def _compare_with_node(conf: NetConf, result: JsonDict) -> None:
    """Refuse an address outside of the node's subnet: no other node would send to it. Nothing is known: nothing is said."""
    try:
        subnets = read_node(conf.subnet_file).subnets
    except CniError:
        return
    for item in _objects(result.get("ips")):
        with suppress(ValueError):
            address = ip_interface(item.get("address", "")).ip
            subnet = subnets.ipv4 if address.version == 4 else subnets.ipv6
            if subnet is not None and address not in subnet:
                cure = "the node has another subnet than when the pod was attached: delete the pod"
                raise CniError(OUTSIDE_SUBNET, f"{address} lies outside of this node's subnet {subnet}; {cure}")


def _valid_attachments(config: JsonDict) -> set[Attachment]:
    listed = config.get(VALID_ATTACHMENTS)
    if not isinstance(listed, list):
        raise CniError(
            INVALID_CONFIG, f"{VALID_ATTACHMENTS}: must be a list; without it every attachment would be taken for stale"
        )
    valid = set()
    for item in listed:
        if not isinstance(item, dict) or not isinstance(item.get("containerID"), str) or not isinstance(item.get("ifname"), str):
            raise CniError(INVALID_CONFIG, f"{VALID_ATTACHMENTS}: {item!a:.80} is wrong; must have containerID and ifname")
        valid.add(Attachment(item["containerID"], item["ifname"]))
    return valid


def _is_own_namespace(netns: str) -> bool:
    """Whether the path leads to the host's own namespace, by mistake or because a /proc/PID path has a new owner.

    A delegate that is sent there would rename, re-route or delete the host's devices.
    """
    try:
        return Path(netns or "/nonexistent").samefile("/proc/self/ns/net")
    except OSError:  # a path that is not there is the delegate's to tell
        return False


def _objects(value: object) -> list[JsonDict]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
