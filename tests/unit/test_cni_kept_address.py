"""Pods that bring their addresses along: which requests are meant, and what the delegate is told then."""

from ipaddress import ip_address
from typing import Any

import pytest

from flanpy.cni.kept_address import kept_addresses, plain_arguments, with_kept_addresses
from flanpy.core.subnet_env import parse_subnet_env
from flanpy.errors import CniError

NODE = parse_subnet_env(
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_NETWORK=fd05::/48\nFLANNEL_IPV6_SUBNET=fd05:0:0:7::1/64\n"
    "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
)
PLAIN: dict[str, Any] = {"cniVersion": "1.0.0", "type": "flanpy", "name": "cbr0"}


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({"runtimeConfig": {"ips": ["10.5.9.3/24"]}}, {}),
        ({"runtimeConfig": {"ips": ["10.5.9.3"]}}, {"IP": "10.5.72.9"}),
        ({"args": {"cni": {"ips": ["10.5.9.3"]}}}, {}),
        ({}, {"IP": "10.5.9.3/24"}),
        ({"runtimeConfig": {"ips": []}}, {"IP": "10.5.9.3"}),
    ],
)
def test_an_address_of_another_node_s_subnet_is_kept(config: dict[str, Any], arguments: dict[str, str]) -> None:
    assert kept_addresses(PLAIN | config, arguments, NODE) == (ip_address("10.5.9.3"),)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {}),
        ({"runtimeConfig": {"ips": ["10.5.72.9/24"]}}, {}),  # ours: host-local gives it
        ({"runtimeConfig": {"ips": ["10.9.0.3/24"]}}, {}),  # outside of the network: host-local refuses it
        ({"runtimeConfig": {"ips": ["rubbish", 7, None]}}, {}),
        ({"runtimeConfig": "x", "args": {"cni": []}}, {"IP": ""}),
    ],
)
def test_everything_else_is_the_ipam_plugin_s_business(config: dict[str, Any], arguments: dict[str, str]) -> None:
    assert kept_addresses(PLAIN | config, arguments, NODE) == ()


@pytest.mark.parametrize(
    ("ips", "reason"),
    [
        (["10.5.9.3", "10.5.72.9"], "a pod keeps all its addresses or none"),
        (["10.5.9.0"], "10.5.9.0 belongs to its subnet itself"),
        (["10.5.9.1"], "10.5.9.1 belongs to its subnet itself"),
        (["10.5.9.255"], "10.5.9.255 belongs to its subnet itself"),
    ],
)
def test_what_no_pod_can_have_is_refused(ips: list[str], reason: str) -> None:
    with pytest.raises(CniError, match=reason):
        kept_addresses(PLAIN | {"runtimeConfig": {"ips": ips}}, {}, NODE)


def test_the_delegate_is_told_the_address_and_the_ways_that_lead_out_by_the_old_gateway() -> None:
    delegate = {
        "name": "cbr0",
        "type": "bridge",
        "mtu": 1472,
        "isGateway": True,
        "isDefaultGateway": True,
        "runtimeConfig": {"ips": ["10.5.9.3"], "mac": "02:00:00:00:00:01"},
        "args": {"cni": {"ips": ["10.5.9.3"], "labels": []}},
        "ipam": {"type": "host-local", "ranges": [], "routes": [{"dst": "10.5.0.0/16"}, {"dst": "fd05::/48"}]},
    }
    assert with_kept_addresses(delegate, (ip_address("10.5.9.3"), ip_address("fd05:0:0:9::3")), NODE) == {
        "name": "cbr0",
        "type": "bridge",
        "mtu": 1472,
        "isGateway": False,
        "isDefaultGateway": False,
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "args": {"cni": {"labels": []}},
        "flanpyKeptAddress": True,
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.5.9.3/24", "gateway": "10.5.9.1"},
                {"address": "fd05:0:0:9::3/64", "gateway": "fd05:0:0:9::1"},
            ],
            "routes": [
                {"dst": "10.5.0.0/16", "gw": "10.5.9.1"},
                {"dst": "0.0.0.0/0", "gw": "10.5.9.1"},
                {"dst": "10.5.9.128/25", "gw": "10.5.9.1"},
                {"dst": "10.5.9.0/25", "gw": "10.5.9.1"},
                {"dst": "fd05::/48", "gw": "fd05:0:0:9::1"},
                {"dst": "::/0", "gw": "fd05:0:0:9::1"},
                {"dst": "fd05:0:0:9:8000::/65", "gw": "fd05:0:0:9::1"},
                {"dst": "fd05:0:0:9::/65", "gw": "fd05:0:0:9::1"},
            ],
        },
    }


def test_the_delegate_s_environment_does_not_ask_again() -> None:
    assert plain_arguments("IgnoreUnknown=1;IP=10.5.9.3;GATEWAY=10.5.9.1;K8S_POD_NAME=web") == "IgnoreUnknown=1;K8S_POD_NAME=web"
