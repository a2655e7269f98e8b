"""The delegate's config: key for key what flannel's plugin makes of the same config and subnet.env."""

import json
from pathlib import Path
from typing import Any

import pytest

from flanpy.cni.install import CONFLIST, CONFLIST_NAME, conflist_text
from flanpy.cni.network import NetConf, parse_netconf, read_node, render_delegate
from flanpy.cni.protocol import INVALID_CONFIG, NOT_AVAILABLE, TRY_AGAIN_LATER
from flanpy.core.subnet_env import parse_subnet_env
from flanpy.errors import CniError

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / CONFLIST_NAME
V4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
V6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\n"


def netconf(**keys: Any) -> NetConf:
    config = {"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", **keys}
    return parse_netconf(config, config["cniVersion"] or "0.1.0")


def rendered(env: str = V4, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    return render_delegate(netconf(**keys), parse_subnet_env(env), version)


def test_the_shortest_config_becomes_a_bridge_with_host_local() -> None:
    assert rendered() == {
        "name": "cbr0",
        "cniVersion": "1.0.0",
        "type": "bridge",
        "ipMasq": False,
        "mtu": 1472,
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.72.0/24"}]], "routes": [{"dst": "10.5.0.0/16"}]},
    }


def test_dual_stack_has_a_range_and_a_route_for_each_family() -> None:
    assert rendered(V4 + V6)["ipam"] == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.5.72.0/24"}], [{"subnet": "fd00:5:0:7::/64"}]],
        "routes": [{"dst": "10.5.0.0/16"}, {"dst": "fd00:5::/48"}],
    }


def test_every_network_of_flannels_list_gets_a_route() -> None:
    text = V4.replace("10.5.0.0/16", "10.5.0.0/16,10.6.0.0/16")
    assert rendered(text)["ipam"]["routes"] == [{"dst": "10.5.0.0/16"}, {"dst": "10.6.0.0/16"}]


def test_the_plugin_masquerades_when_the_agent_does_not() -> None:
    assert rendered(V4.replace("true", "false"))["ipMasq"] is True


def test_what_the_config_says_of_the_delegate_stands() -> None:
    found = rendered(delegate={"type": "macvlan", "mtu": 1400, "ipMasq": False, "mode": "bridge"})
    assert {key: found[key] for key in ("type", "mtu", "ipMasq", "mode")} == {
        "type": "macvlan",
        "mtu": 1400,
        "ipMasq": False,
        "mode": "bridge",
    }
    assert "isGateway" not in found


def test_ipam_of_the_config_is_completed_not_replaced() -> None:
    ipam = {"dataDir": "/x", "ranges": [["theirs"]], "routes": [{"dst": "0.0.0.0/0"}]}
    assert rendered(ipam=ipam)["ipam"] == {
        "type": "host-local",
        "dataDir": "/x",
        "ranges": [[{"subnet": "10.5.72.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.5.0.0/16"}],
    }


def test_what_the_runtime_adds_is_passed_on() -> None:
    found = rendered(runtimeConfig={"ips": ["10.5.72.9/24"]}, args={"cni": {"labels": []}})
    assert (found["runtimeConfig"], found["args"]) == ({"ips": ["10.5.72.9/24"]}, {"cni": {"labels": []}})


def test_a_delegate_gets_the_version_that_it_speaks_and_none_when_the_config_has_none() -> None:
    assert rendered(version="1.0.0", cniVersion="1.1.0")["cniVersion"] == "1.0.0"
    assert "cniVersion" not in rendered(version="0.1.0", cniVersion="")


def test_the_places_are_flannels_unless_given() -> None:
    assert (netconf().subnet_file, netconf().data_dir) == (Path("/run/flannel/subnet.env"), Path("/var/lib/cni/flannel"))
    assert netconf(subnetFile="/a", dataDir="/b").data_dir == Path("/b")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": 7}, "name"),
        ({"delegate": []}, "delegate"),
        ({"delegate": {"name": "x"}}, "delegate.name"),
        ({"delegate": {"ipam": {}}}, "delegate.ipam"),
        ({"delegate": {"type": 3}}, "delegate.type"),
        ({"delegate": {"type": "../../bin/sh"}}, "delegate.type"),
        ({"delegate": {"type": "flannel"}}, "delegate.type"),
        ({"delegate": {"type": "flanpy"}}, "delegate.type"),
        ({"ipam": "host-local"}, "ipam"),
        ({"ipam": {"type": "/bin/sh"}}, "ipam.type"),
        ({"ipam": {"routes": "all"}}, "ipam.routes"),
        ({"dataDir": "relative"}, "dataDir"),
        ({"dataDir": "/a\0b"}, "dataDir"),
        ({"subnetFile": 1}, "subnetFile"),
    ],
)
def test_a_wrong_key_is_refused_by_its_path(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(CniError) as caught:
        netconf(**keys)
    assert (caught.value.code, str(caught.value).split(":")[0]) == (INVALID_CONFIG, named)


def test_a_missing_subnet_env_says_what_writes_it(tmp_path: Path) -> None:
    for code in (TRY_AGAIN_LATER, NOT_AVAILABLE):
        with pytest.raises(CniError, match="No such file or directory; .*start `flanpy agent`") as caught:
            read_node(tmp_path / "subnet.env", code)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "FLANNEL_SUBNET is missing"), (V4.replace("NETWORK", "NET"), "FLANNEL_NETWORK is missing"), ("\0" * 99, "is missing")],
)
def test_a_wrong_subnet_env_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "subnet.env").write_text(text)
    with pytest.raises(CniError, match=says):
        read_node(tmp_path / "subnet.env")


def test_the_example_is_what_install_writes_and_every_plugin_of_ours_in_it_is_accepted() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == conflist_text()
    assert json.loads(EXAMPLE.read_text(encoding="utf-8")) == CONFLIST
    ours = [plugin for plugin in CONFLIST["plugins"] if plugin["type"] == "flanpy"]  # type: ignore[attr-defined, index]
    assert [netconf(**plugin).delegate_type for plugin in ours] == ["bridge"]
