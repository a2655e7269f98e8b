"""IPv6 on the underlay of a lab, whose hosts have it switched off otherwise."""

from __future__ import annotations

from flanpy.lab.plan import Plan

ON = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.forwarding=1"


def underlay6_script(plan: Plan) -> str:
    """Gives each host an address: fd31:9::1 is host1's."""
    lines = (
        f"ip netns exec {host.name} sh -euc 'sysctl -qw {ON}; ip addr add fd31:9::{number}/64 dev eth0 nodad'\n"
        for number, host in enumerate(plan.hosts, 1)
    )
    return "".join(lines)
