"""The ebpf datapath on a stock kernel (Debian 12, Linux 6.1): no tcx, VLAN interfaces, verifier and offloads of that age.

Not collected by itself: `make test-vm` names this file and runs it in a virtual machine, under emulation 10 to 25 times slower than
here. So few bytes, and no figures. The topology is drawn in tests/support/ebpf.py.
"""

import hashlib
import os

import pytest

from flanpy.datapath.ebpf import EbpfDatapath
from flanpy.datapath.ebpf_probe import probe_all
from tests.netns.test_datapath_traffic import send_and_digest
from tests.netns.test_ebpf_life import attached_filters, leave
from tests.support.ebpf import ebpf_overlay, table
from tests.support.netns import counters
from tests.support.polling import eventually

pytestmark = pytest.mark.root

CONTENT_BYTES = 2 << 20
WAYS = ((4, 4), (6, 6), (6, 4), (4, 6))
"""IP versions inside and outside."""


def test_every_probe_passes_and_the_hook_is_clsact() -> None:
    found = {probe.name: probe for probe in probe_all("lo")}
    assert [name for name, probe in found.items() if not probe.ok] == []
    assert found["ipv6"].reason.startswith("not on this kernel")
    assert "Linux 6.3): IPv4 over IPv6;" in found["ipv6-underlay"].reason
    needed = {way: [probe.name for probe in probe_all("lo", needed=frozenset({way})) if not probe.ok] for way in WAYS}
    assert needed == {(4, 4): [], (6, 6): [], (6, 4): ["ipv6"], (4, 6): ["ipv6-underlay"]}
    assert found["hook"].reason.startswith("filters of a clsact qdisc")


@pytest.mark.parametrize("wire", [False, True], ids=["superpacket", "wire"])
@pytest.mark.parametrize("kinds", [("ebpf", "ebpf"), ("ebpf", "userspace"), ("userspace", "ebpf")], ids="-".join)
def test_tcp_content_arrives_unharmed_both_ways(kinds: tuple[str, str], wire: bool) -> None:
    content = os.urandom(CONTENT_BYTES)
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay(kinds, wire=wire) as made:
        assert send_and_digest(made.a, made.b, content) == expected
        assert send_and_digest(made.b, made.a, content) == expected
        assert set(counters(made.a.stats)) == set(counters(made.b.stats)) == {"encapsulated", "decapsulated"}


@pytest.mark.parametrize("wire", [False, True], ids=["superpacket", "wire"])
def test_ipv6_over_an_ipv6_underlay_arrives_unharmed_both_ways(wire: bool) -> None:
    content = os.urandom(CONTENT_BYTES)
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay(wire=wire, ipv6=True, outer=6) as made:
        assert send_and_digest(made.a, made.b, content, made.b.pod_address6) == expected
        assert send_and_digest(made.b, made.a, content, made.a.pod_address6) == expected
        assert made.a.stats.counters["bpf_superpackets_out"] > 0


def test_packets_go_by_the_programs_alone() -> None:
    with ebpf_overlay() as made:
        assert " 3 received" in made.a.pod.run("ping", "-c3", "-i0.2", "-W5", str(made.b.pod_address))
        assert counters(made.a.stats) == counters(made.b.stats) == {"encapsulated": 3, "decapsulated": 3}
        assert made.a.stats.counters["tun_reads"] == 0


def test_a_closed_datapath_carries_on_and_the_next_one_adopts_it() -> None:
    with ebpf_overlay() as made:
        leave(made.b)
        assert " 2 received" in made.a.pod.run("ping", "-c2", "-i0.2", "-W5", str(made.b.pod_address))
        made.b.open()
        assert isinstance(made.b.datapath, EbpfDatapath) and made.b.datapath.adopted
        made.b.publish(table(made.b, made.a, generation=7))
        assert counters(made.b.stats) == {"encapsulated": 2, "decapsulated": 2}
        assert made.b.stats.counters["bpf_repairs"] == 0


def test_a_filter_that_was_removed_by_hand_is_put_back_and_teardown_leaves_none() -> None:
    with ebpf_overlay() as made:
        made.a.host.script("tc qdisc del dev uplink clsact")
        made.a.check()
        assert made.a.stats.counters["bpf_repairs"] == 1
        assert "fp_decap" in attached_filters(made.a, "uplink")
        made.a.close()
        assert "fp_" not in attached_filters(made.a, "uplink")


@pytest.mark.parametrize("finishes", [False, True], ids=["superpacket", "wire"])
def test_a_vlan_as_underlay_carries_the_same(finishes: bool) -> None:
    """The programs hang at the VLAN's interface, behind the tag; the trunk below cuts and finishes, or hands on what it gets."""
    content = os.urandom(CONTENT_BYTES)
    expected = hashlib.sha256(content).hexdigest()
    with ebpf_overlay(vlan=True) as made:
        if finishes:
            for side in (made.a, made.b):
                side.host.script("ethtool -K trunk tso off gso off tx off tx-udp-segmentation off >/dev/null")
        for sender, receiver in ((made.a, made.b), (made.b, made.a)) * 2:
            assert send_and_digest(sender, receiver, content) == expected

        def whole() -> bool:
            assert send_and_digest(made.a, made.b, content) == expected
            return made.a.stats.counters["bpf_superpackets_out"] > 0

        # A VLAN's interface says that it merges, so TCP begins in trains, until probes show that superpackets arrive whole.
        if finishes:
            assert made.a.stats.counters["bpf_up_tcp_train"] > 0
        else:
            eventually(whole, 30, "superpackets go whole")
        assert set(counters(made.a.stats)) == set(counters(made.b.stats)) == {"encapsulated", "decapsulated"}
