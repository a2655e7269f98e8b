"""flanneld's blackhole routes in the kernel: found as what they are and removed, with ours and an operator's beside them."""

from ipaddress import IPv4Network, IPv6Network

import pytest

from flanpy.core.reconcile import diff
from flanpy.core.rules import blackholes, flannel_blackholes
from flanpy.kernel.netlink import Kernel
from flanpy.kernel.routes import apply, list_routes
from flanpy.model import FLANNEL_ROUTE_PROTOCOL, Subnets
from tests.support.namespaces import inside, namespace

pytestmark = pytest.mark.root

OWN = Subnets(IPv4Network("10.244.7.0/24"), IPv6Network("fd05:7::/64"))


def test_flanneld_s_blackholes_of_our_subnets_go_and_no_others() -> None:
    with namespace() as made, inside(made), Kernel() as kernel:
        made.ip(
            "route add blackhole 10.244.7.0/24\nroute add blackhole fd05:7::/64\n"
            "route add blackhole 10.244.8.0/24\nroute add blackhole 10.244.7.0/24 metric 7\nroute add blackhole fd05:8::/64"
        )
        theirs = list_routes(kernel, FLANNEL_ROUTE_PROTOCOL)
        assert flannel_blackholes(OWN) < theirs
        done = apply(kernel, diff(blackholes(OWN), flannel_blackholes(OWN) & theirs))
        assert done.failed == ()
        assert list_routes(kernel, FLANNEL_ROUTE_PROTOCOL) == theirs - flannel_blackholes(OWN)
        assert list_routes(kernel) == blackholes(OWN)
