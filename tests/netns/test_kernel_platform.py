"""Host checks against the real files of a namespace and of a thread without its capability."""

from collections.abc import Iterator

import pytest

from flanpy.kernel.platform import check_platform
from tests.support.namespaces import Namespace, inside, namespace, without_net_admin

pytestmark = pytest.mark.root


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        yield made


def found() -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in check_platform()]


def test_a_host_that_forwards_has_no_finding(ns: Namespace) -> None:
    ns.script("sysctl -qw net.ipv4.ip_forward=1")
    assert found() == []


def test_forwarding_is_looked_at_in_the_namespace_of_the_thread(ns: Namespace) -> None:
    ns.script("sysctl -qw net.ipv4.ip_forward=0")
    assert found() == [("warning", "net.ipv4.ip_forward is 0: no packet goes from pods to the tunnel")]


def test_a_thread_without_the_capability_is_found_out(ns: Namespace) -> None:
    ns.script("sysctl -qw net.ipv4.ip_forward=1")
    with without_net_admin():
        assert found() == [("error", "the capability CAP_NET_ADMIN is missing")]
