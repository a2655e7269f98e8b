"""What the ebpf datapath asks of the kernel while nothing happens: counted, for it does so every second for as long as a node lives.

The topology is drawn in tests/support/ebpf.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest

from flanpy.datapath import ebpf_syscall as bpf
from flanpy.datapath.ebpf import EbpfDatapath
from flanpy.datapath.ebpf_prober import BULK_PACKETS, PROBES_A_TURN, Notes, SuperpacketProber, Target, Watch, _slot
from flanpy.errors import DatapathError
from flanpy.kernel import ethtool
from flanpy.kernel.netlink import Kernel
from tests.netns.test_ebpf_life import HOOKS, pins_of
from tests.support.ebpf import EbpfOverlay, ebpf_overlay
from tests.support.namespaces import inside, namespace
from tests.support.polling import eventually

pytestmark = pytest.mark.root


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Questions to the kernel by kind: bpf(2) by command, netlink dumps, ethtool's ioctl."""
    asked: Counter[str] = Counter()
    call, dump, ask = bpf.call, Kernel.dump, ethtool.ask

    def counting_call(command: int, attributes: bytes | bytearray) -> int:
        asked[f"bpf {command}"] += 1
        return call(command, attributes)

    def counting_dump(self: Kernel, kind: int, body: bytes) -> Any:
        asked["dump"] += 1
        return dump(self, kind, body)

    def counting_ask(device: str, request: bytes) -> bytes:
        asked["ioctl"] += 1
        return ask(device, request)

    with patch.context() as patched:
        patched.setattr(bpf, "call", counting_call)
        patched.setattr(Kernel, "dump", counting_dump)
        patched.setattr(ethtool, "ask", counting_ask)
        yield asked


def programs_of(made: EbpfOverlay) -> int:
    assert isinstance(made.a.datapath, EbpfDatapath)
    return len(made.a.datapath._spots)


def settle(made: EbpfOverlay) -> None:
    """Close looks until one can tell later changes from what it saw: nothing was pinned or removed for two ticks."""
    datapath = made.a.datapath
    assert isinstance(datapath, EbpfDatapath)

    def looked() -> bool:
        made.a.check()
        return datapath._seen is not None

    eventually(looked, 5, "what hangs and is pinned is known")


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_look_at_rest_asks_once_for_each_program(hooks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        settle(made)
        with counted(monkeypatch) as asked:
            for _ in range(3):
                made.a.check(closely=False)
        kind = f"bpf {bpf.PROG_QUERY}" if hooks == "tcx" else "dump"
        assert asked == {kind: 3 * programs_of(made)}
        with counted(monkeypatch) as asked:
            made.a.check()
        assert asked["dump"] >= 2 and asked["ioctl"] >= 1, "what is counted is what a close look asks too"


@pytest.mark.parametrize(("hooks", "name"), [("tcx", "link_fp_decap"), ("tcx", "prog_fp_encap"), ("clsact", "prog_fp_encap")])
def test_a_name_that_was_removed_by_hand_is_put_back_by_a_look_at_rest(
    hooks: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ebpf_overlay(hooks=hooks) as made:
        settle(made)
        made.a.check(closely=False)
        names = pins_of(made.a).names()
        (pins_of(made.a).directory / name).unlink()
        made.a.check(closely=False)
        assert (pins_of(made.a).names(), made.a.stats.counters["bpf_repairs"]) == (names, 1)
        settle(made)
        with counted(monkeypatch) as asked:
            made.a.check(closely=False)
        assert asked["ioctl"] == 0, "all is as it was: nothing is looked at closely again"


def test_a_look_at_rest_hears_of_narrow_routes_and_without_a_prober_of_offloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanpy.datapath.ebpf.may_send_raw", lambda: False)
    with ebpf_overlay() as made:
        made.a.check()
        datapath = made.a.datapath
        assert isinstance(datapath, EbpfDatapath) and datapath._header is not None and datapath._header.whole
        made.a.host.script("ethtool -K uplink tso off >/dev/null; ip route add 172.31.0.2 dev uplink mtu 1300")
        made.a.check(closely=False)
        assert not datapath._header.whole
        assert datapath._mtus.narrow == {IPv4Address("172.31.0.2"): 1300}


@pytest.mark.parametrize("closely", [True, False])
def test_what_is_known_of_the_paths_is_forgotten_by_whichever_look_finds_another_uplink(
    closely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flanpy.datapath.ebpf.may_send_raw", lambda: False)
    with ebpf_overlay() as made:
        settle(made)
        datapath = made.a.datapath
        assert isinstance(datapath, EbpfDatapath)
        maps = [datapath._running().maps[name] for name in ("fp_wholes", "fp_thanks")]
        slot = _slot(int(IPv4Address("172.31.0.2")))
        for notes in maps:
            bpf.update(notes, slot, bytes(7) + b"\1")
        made.a.check(closely=closely)
        assert all(any(bpf.lookup(notes, slot, 8)) for notes in maps), "nothing has changed"
        made.a.host.script("ethtool -K uplink tso off >/dev/null")
        made.a.check(closely=closely)
        assert not any(any(bpf.lookup(notes, slot, 8)) for notes in maps)


def test_an_uplink_that_has_another_name_is_said_to_be_gone_so_that_it_is_looked_for_anew() -> None:
    with ebpf_overlay() as made:
        settle(made)
        made.a.host.script("ip link set uplink down; ip link set uplink name lan0")
        with pytest.raises(DatapathError, match="uplink: there is no such interface any more"):
            made.a.check()


def test_the_prober_looks_at_the_uplink_in_every_turn_and_probes_only_while_bulk_traffic_flows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flanpy.datapath.ebpf_prober.PERIOD_S", 0.02)
    monkeypatch.setattr("flanpy.datapath.ebpf_prober.REST_PERIOD_S", 0.02)
    monkeypatch.setattr("flanpy.datapath.ebpf_prober.ACTIVE_S", 0.01)
    turns, looks, probes, bulk = [0], [0], [0], [0]

    def count() -> int:
        turns[0] += 1
        return bulk[0]

    def look() -> None:
        looks[0] += 1

    def send(self: SuperpacketProber, target: Target, total_bytes: int) -> bool:
        probes[0] += 1
        return True

    monkeypatch.setattr(SuperpacketProber, "_send", send)

    shape = bpf.MapShape(bpf.ARRAY, 4, 8, 4096)
    with namespace() as made, inside(made), bpf.create_map("a", shape) as wholes, bpf.create_map("b", shape) as thanks:
        source = IPv4Address("127.0.0.1")
        prober = SuperpacketProber("lo", (source,), Notes(wholes, thanks), Watch(count, look), only_probes_tell=False)
        try:
            prober.aim((Target(1, source),), 1472, whole=True)
            eventually(lambda: turns[0] >= 5, 10, "the prober turns")
            assert looks[0] >= turns[0] - 1 and probes == [0]
            bulk[0] += BULK_PACKETS - 1
            seen = turns[0]
            eventually(lambda: turns[0] >= seen + 5, 10, "the prober turns")
            assert probes == [0], "a small connection"
            bulk[0] += BULK_PACKETS
            eventually(lambda: probes == [1], 10, "traffic begins, and the peer is probed")
            seen = turns[0]
            eventually(lambda: turns[0] >= seen + 5, 10, "the prober turns")
            assert looks[0] >= turns[0] - 1 and probes == [1], "it has ended: the uplink is looked at, nothing is sent"
        finally:
            prober.close()


def test_of_many_peers_some_are_told_in_each_turn_that_the_interface_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanpy.datapath.ebpf_prober.PERIOD_S", 0.02)
    monkeypatch.setattr("flanpy.datapath.ebpf_prober.REST_PERIOD_S", 0.02)
    turns: list[set[Target]] = []

    def count() -> int:
        turns.append(set())
        return len(turns) * BULK_PACKETS

    def send(self: SuperpacketProber, target: Target, total_bytes: int) -> bool:
        turns[-1].add(target)
        return True

    monkeypatch.setattr(SuperpacketProber, "_send", send)
    targets = tuple(Target(number, IPv4Address(f"10.5.{number}.0")) for number in range(50))
    shape = bpf.MapShape(bpf.ARRAY, 4, 8, 4096)
    with namespace() as made, inside(made), bpf.create_map("a", shape) as wholes, bpf.create_map("b", shape) as thanks:
        watch = Watch(count, lambda: None)
        prober = SuperpacketProber("lo", (IPv4Address("10.5.99.0"),), Notes(wholes, thanks), watch, only_probes_tell=False)
        try:
            prober.trains = True
            prober.aim(targets, 1472, whole=False)
            eventually(lambda: len(turns) >= 6, 10, "the prober turns")
        finally:
            prober.close()
    whole_turns = [turn for turn in turns if turn]
    assert all(len(turn) == PROBES_A_TURN for turn in whole_turns)
    assert set().union(*whole_turns[:3]) == set(targets), "each has its turn"
