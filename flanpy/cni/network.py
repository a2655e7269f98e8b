"""The plugin's network config, and the delegate's config that comes of it and of subnet.env. Pure: values in, values out.

Keys of a config of type flanpy or flannel, besides the specification's (all optional):

    subnetFile     where the agent writes subnet.env                         /run/flannel/subnet.env
    dataDir        where what DEL needs is kept, a file for each attachment  /var/lib/cni/flannel
    delegate       keys for the delegate's config; without ``type`` it is bridge
    ipam           keys for the delegate's ipam; without ``type`` it is host-local; ``routes`` come before ours, ``ranges`` are ours
    runtimeConfig  passed on to the delegate, as ``args`` is
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanpy.cni.protocol import INVALID_CONFIG, TRY_AGAIN_LATER, JsonDict, is_plugin_name
from flanpy.core.subnet_env import SubnetEnv, parse_subnet_env
from flanpy.errors import CniError, ConfigError

DEFAULT_SUBNET_FILE = "/run/flannel/subnet.env"
DEFAULT_DATA_DIR = "/var/lib/cni/flannel"
OWN_TYPES = ("flanpy", "flannel")
PASSED_ON = ("runtimeConfig", "args")
MAX_SUBNET_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class NetConf:
    """A checked config: what is the plugin's own, and the two objects that the delegate's config starts from."""

    name: str
    version: str
    stated_version: bool
    subnet_file: Path
    data_dir: Path
    delegate: JsonDict
    ipam: JsonDict

    @property
    def delegate_type(self) -> str:
        """The plugin that does the work."""
        return str(self.delegate.get("type", "bridge"))

    @property
    def ipam_type(self) -> str:
        """The plugin that gives addresses."""
        return str(self.ipam.get("type", "host-local"))


def parse_netconf(config: JsonDict, version: str) -> NetConf:
    """Check what the plugin itself uses; raises CniError (7) that names the key."""
    name = config.get("name", "")
    if not is_plugin_name(name):
        raise _wrong("name", name, "letters, digits, _ . or -, for example cbr0")
    delegate, ipam = _object(config, "delegate"), _object(config, "ipam")
    for key in ("name", "ipam"):
        if key in delegate:
            where = "it is the network's name" if key == "name" else "it belongs beside delegate, as the key ipam of the config"
            raise CniError(INVALID_CONFIG, f"delegate.{key}: must not be given; {where}")
    for key, section in (("delegate.type", delegate), ("ipam.type", ipam)):
        plugin = section.get("type", "bridge")
        if not is_plugin_name(plugin) or plugin in OWN_TYPES:
            raise _wrong(key, plugin, "the file name of another plugin, for example bridge or host-local")
    if not isinstance(ipam.get("routes", []) or [], list):
        raise _wrong("ipam.routes", ipam["routes"], 'a list, for example [{"dst": "0.0.0.0/0"}]')
    delegate |= {key: config[key] for key in PASSED_ON if config.get(key)}
    return NetConf(
        name,
        version,
        bool(config.get("cniVersion")),
        _path(config, "subnetFile", DEFAULT_SUBNET_FILE),
        _path(config, "dataDir", DEFAULT_DATA_DIR),
        delegate,
        ipam,
    )


def render_delegate(conf: NetConf, node: SubnetEnv, version: str) -> JsonDict:
    """The delegate's config for this node, key for key what flannel's plugin makes; ``version`` is what the delegate can speak."""
    rendered = dict(conf.delegate)
    rendered["name"] = conf.name
    rendered.setdefault("type", "bridge")
    rendered.setdefault("ipMasq", not node.ip_masq)
    rendered.setdefault("mtu", node.mtu_bytes)
    if rendered["type"] == "bridge":
        rendered.setdefault("isGateway", True)
    if conf.stated_version:
        rendered["cniVersion"] = version
    subnets = [subnet for subnet in (node.subnets.ipv4, node.subnets.ipv6) if subnet is not None]
    networks = [network for network in (node.network, node.ipv6_network, *node.more_networks) if network is not None]
    ipam = {"type": conf.ipam_type, **conf.ipam}
    ipam["ranges"] = [[{"subnet": str(subnet)}] for subnet in subnets]
    ipam["routes"] = [*(ipam.get("routes") or []), *({"dst": str(network)} for network in networks)]
    return {**rendered, "ipam": ipam}


def read_node(subnet_file: Path, code: int = TRY_AGAIN_LATER) -> SubnetEnv:
    """What the agent has written; raises CniError with ``code`` when that is not there (yet) or wrong."""
    try:
        with subnet_file.open("rb") as file:
            text = file.read(MAX_SUBNET_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        cure = "it is written when this node has its subnet: start `flanpy agent` here, or see why it is not ready (its log)"
        raise CniError(
            code, f"{subnet_file}: {error.strerror}; {cure}; or set subnetFile to where the agent writes it"
        ) from error
    try:
        node = parse_subnet_env(text)
    except ConfigError as error:
        raise CniError(code, f"{subnet_file}: {'; '.join(error.problems)}; the agent writes it anew when it starts") from error
    if node.network is None and node.ipv6_network is None:
        raise CniError(code, f"{subnet_file}: FLANNEL_NETWORK is missing, for example FLANNEL_NETWORK=10.5.0.0/16")
    return node


def _object(config: JsonDict, key: str) -> JsonDict:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return dict(value or {})


def _path(config: JsonDict, key: str, default: str) -> Path:
    value = config.get(key) or default
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _wrong(key, value, f"an absolute path, for example {default}")
    return Path(value)


def _wrong(key: str, value: object, right: str) -> CniError:
    return CniError(INVALID_CONFIG, f"{key}: {value!a:.60} is wrong; it must be {right}")
