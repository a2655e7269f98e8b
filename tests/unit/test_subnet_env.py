"""subnet.env: flannel's text, and an earlier run's read back."""

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.config.network import parse_network_config
from flanpy.core.subnet_env import SubnetEnv, parse_subnet_env, render_subnet_env
from flanpy.errors import ConfigError
from flanpy.model import Subnets
from tests.support.networks import network

V4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
DUAL = (
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n"
    "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
)
SUBNET, SUBNET6 = IPv4Network("10.5.72.0/24"), IPv6Network("fd00:5:0:7::/64")


def test_the_text_is_flannels() -> None:
    assert render_subnet_env(network("10.5.0.0/16"), Subnets(SUBNET), 1472, True) == V4


def test_dual_stack_has_two_lines_more() -> None:
    config = parse_network_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
    assert render_subnet_env(config, Subnets(SUBNET, SUBNET6), 1450, False) == DUAL


def test_what_was_written_is_read_back() -> None:
    assert parse_subnet_env(V4) == SubnetEnv(IPv4Network("10.5.0.0/16"), None, Subnets(SUBNET), 1472, True)
    assert parse_subnet_env(DUAL) == SubnetEnv(
        IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48"), Subnets(SUBNET, SUBNET6), 1450, False
    )


def test_unknown_lines_quotes_and_carriage_returns_do_no_harm() -> None:
    text = '# comment\r\nFLANNEL_SUBNET="10.5.72.1/24"\r\nFLANNEL_MTU=1472\r\nOTHER=1\r\n\r\n'
    assert parse_subnet_env(text).subnets == Subnets(SUBNET)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "",
            (
                "subnet.env: FLANNEL_SUBNET is missing, for example FLANNEL_SUBNET=10.5.72.1/24",
                "subnet.env: FLANNEL_MTU is missing, for example FLANNEL_MTU=1472",
            ),
        ),
        (
            "FLANNEL_SUBNET=10.5.72/24\nFLANNEL_MTU=1472b\nFLANNEL_IPMASQ=yes\n",
            (
                "subnet.env: FLANNEL_SUBNET='10.5.72/24' is wrong, for example FLANNEL_SUBNET=10.5.72.1/24",
                "subnet.env: FLANNEL_MTU='1472b' is wrong, for example FLANNEL_MTU=1472",
                "subnet.env: FLANNEL_IPMASQ='yes' is wrong, for example FLANNEL_IPMASQ=false",
            ),
        ),
    ],
)
def test_every_damaged_line_is_told(text: str, problems: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_subnet_env(text)
    assert caught.value.problems == problems


@given(st.text() | st.sampled_from([V4, DUAL]).flatmap(lambda text: st.integers(0, len(text)).map(lambda length: text[:length])))
def test_a_torn_or_garbled_file_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        assert parse_subnet_env(text).mtu_bytes >= 68
    except ConfigError as error:
        assert error.problems
