"""Addresses of our subnet on devices of others: what is told, and what is nobody's fault."""

from ipaddress import IPv4Interface, IPv4Network, ip_interface

import pytest

from flanpy.agent.taken import judge
from flanpy.model import DesiredState, Subnets, Tunnel

DESIRED = DesiredState(
    tunnel=Tunnel("flannel0", 1472, (IPv4Interface("10.5.7.0/32"),)),
    routes=frozenset(),
    table=None,
    own=Subnets(IPv4Network("10.5.7.0/24")),
)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ((), []),
        ((("eth0", "192.0.2.1/24"), ("cni0", "10.5.7.1/24")), []),
        ((("eth1", "10.5.7.0/24"),), ["10.5.7.0, the address of flannel0, is taken by eth1: ip addr del 10.5.7.0/24 dev eth1"]),
        (
            (("docker0", "10.5.7.1/24"), ("cni0", "10.5.7.1/24")),
            [
                "cni0 (10.5.7.1/24) and docker0 (10.5.7.1/24) are both on the link of 10.5.7.0/24: keep the one that is the pods' bridge"
            ],
        ),
        ((("veth1", "10.5.7.1/32"), ("veth2", "10.5.7.1/32")), []),  # as the plugin ptp has it: a gateway for each pod
    ],
)
def test_what_others_have_of_our_subnet_is_told(others: tuple[tuple[str, str], ...], told: list[str]) -> None:
    assert judge(DESIRED, [(name, ip_interface(text)) for name, text in others]) == told
