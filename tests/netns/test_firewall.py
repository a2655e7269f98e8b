"""Masquerade and forward rules in real namespaces: packets for each rule, repair, restart without a gap, foreign rules untouched.

The topology is drawn in tests/support/firewall.py. Each mode is tried: nft, iptables over nftables, iptables-legacy.
"""

from __future__ import annotations

import queue
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from flanpy.errors import PlatformError
from flanpy.kernel import firewall_tool
from flanpy.kernel.firewall import Firewall, find_rules, remove_rules
from flanpy.kernel.firewall_nft import NftFirewall
from flanpy.kernel.firewall_watch import RulesWatch
from flanpy.model import FirewallRules, FirewallTool
from tests.support.firewall import ADDRESSES, FLANNEL0, OUT0, PORT, Node, counters, node, rules
from tests.support.namespaces import Namespace, inside, namespace

pytestmark = pytest.mark.root

MODES: dict[str, tuple[FirewallTool, str]] = {
    "nft": ("nft", "nft"),
    "iptables-nft": ("iptables", "nft"),
    "iptables-legacy": ("iptables", "legacy"),
}


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as made, inside(made):
        yield made


@pytest.fixture(scope="module")
def around() -> Iterator[Node]:
    with node() as made:
        yield made


@pytest.fixture(params=sorted(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def converge(where: Namespace, mode: str, wanted: FirewallRules | None = None) -> int:
    """What a fresh agent does."""
    tool, variant = MODES[mode]
    with inside(where):
        return Firewall(variant=variant).converge(replace(wanted or rules(), tool=tool))


def ruleset(where: Namespace, mode: str) -> list[str]:
    """The whole ruleset of the namespace without counters; nft lists chains in the order of their making."""
    commands = ["nft -s list ruleset"] if mode != "iptables-legacy" else ["iptables-legacy-save", "ip6tables-legacy-save"]
    lines = [line for command in commands for line in where.run(*command.split()).splitlines()]
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


# ------------------------------------------------------------------------------------------------ packets


@pytest.fixture
def ruled(around: Node, mode: str) -> Iterator[Node]:
    assert converge(around.node, mode) > 0
    yield around
    with inside(around.node):
        remove_rules(MODES[mode][1])


def cases(version: int) -> list[tuple[str, dict[str, object], str]]:
    """For each rule: its comment, the packet that should hit it, and the source address that the packet arrives with."""
    own = ADDRESSES[version]
    return [
        ("marked by kube-proxy", {"source": "node", "target": "outside", "mark": 0x4000, "sender": own["bridge"]}, own["bridge"]),
        ("own subnet to network", {"source": "pod", "target": "peer"}, own["pod"]),
        ("network to own subnet", {"source": "peer", "target": "pod"}, own["peer"]),
        ("outside to own subnet", {"source": "outside", "target": "pod"}, own["outside"]),
        ("network to outside", {"source": "pod", "target": "outside"}, OUT0[version]),
        ("outside to network", {"source": "guest", "target": "peer"}, FLANNEL0[version]),
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_each_rule_does_what_flannel_means_by_it_and_counts_its_packet(ruled: Node, mode: str, version: int) -> None:
    for comment, packet, expected in cases(version):
        key = (None if mode == "nft" and "marked" in comment else version, comment)
        before = counters(ruled.node, mode)
        assert ruled.seen(version=version, **packet) == expected, comment  # type: ignore[arg-type]
        after = counters(ruled.node, mode)
        grown = {name for name in after if after[name] > before[name] and name[1] not in ("from network", "to network")}
        assert grown == {key}, comment


@pytest.mark.parametrize("version", [4, 6])
def test_each_rule_counts_its_packet_before_during_and_after_restarts_under_1000_new_flows_a_second(
    ruled: Node, mode: str, version: int
) -> None:
    """A restart is a fresh keeper that finds the rules good and writes nothing: counters go on, and nobody meets a gap."""
    started, busy = counters(ruled.node, mode), (version, "network to outside")
    stop, written = threading.Event(), []

    def restart() -> None:
        while not stop.is_set():
            written.append(converge(ruled.node, mode))

    keeper = threading.Thread(target=restart)
    with ruled.flows("pod", "outside", version, port=PORT + 1) as flows:
        _each_counts_one(ruled, mode, version, busy)
        keeper.start()
        try:
            _each_counts_one(ruled, mode, version, busy)
        finally:
            stop.set()
            keeper.join()
        _each_counts_one(ruled, mode, version, busy)
    assert (flows.sources, set(written)) == ({OUT0[version]: flows.sent}, {0})
    assert counters(ruled.node, mode)[busy] == started[busy] + flows.sent + 3, "three of its packets were sent by themselves"


def _each_counts_one(ruled: Node, mode: str, version: int, busy: tuple[int, str]) -> None:
    """Send the packet of each rule: every rule of this family but the one that is busy anyway has met one more, no other any."""
    before = counters(ruled.node, mode)
    for comment, packet, expected in cases(version):
        assert ruled.seen(version=version, **packet) == expected, comment  # type: ignore[arg-type]
    after = counters(ruled.node, mode)
    forward = ("from network", "to network")
    grown = {name: after[name] - before[name] for name in after if name != busy and name[1] not in forward}
    assert grown == {name: int(name[0] in (None, version)) for name in grown}
    assert after[busy] > before[busy]


def test_a_packet_between_strangers_meets_none_of_our_rules(ruled: Node, mode: str) -> None:
    before = counters(ruled.node, mode)
    assert ruled.seen("guest", "outside", 4) == ADDRESSES[4]["guest"]
    assert counters(ruled.node, mode) == before


def test_multicast_of_the_network_keeps_its_source(ruled: Node, mode: str) -> None:
    before = counters(ruled.node, mode)
    with inside(ruled.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind((ADDRESSES[4]["bridge"], 0))
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(OUT0[4]))
        out.sendto(b"x", ("239.1.1.1", PORT))
    after = counters(ruled.node, mode)
    assert after[4, "network to outside"] == before[4, "network to outside"]


def test_forwarding_is_accepted_where_iptables_would_drop_it(around: Node) -> None:
    """Docker gives FORWARD the policy DROP: only an accept in iptables itself helps, which is where ``auto`` puts it."""
    around.node.run("iptables-nft", "-P", "FORWARD", "DROP")
    try:
        with pytest.raises(TimeoutError):
            around.seen("pod", "peer", 4)
        with inside(around.node):
            firewall = Firewall(variant="nft")
            firewall.converge(rules(tool="auto"))
        assert (firewall.placement.masquerade, firewall.placement.forward) == ("nft", "iptables")  # type: ignore[union-attr]
        assert around.seen("pod", "peer", 4) == ADDRESSES[4]["pod"]
        assert around.seen("pod", "outside", 4) == OUT0[4]
        with pytest.raises(TimeoutError):
            around.seen("guest", "outside", 4)
    finally:
        around.node.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
        with inside(around.node):
            remove_rules("nft")


# ------------------------------------------------------------------------------------------------ no gap


def test_no_packet_goes_out_unmasqueraded_while_rules_are_checked_exchanged_and_checked_again(ruled: Node, mode: str) -> None:
    """20 exchanges of the whole rules, as after a change of the subnet, and 20 starts that find them good; a new flow each millisecond."""
    with ruled.flows("pod", "outside") as flows:
        for fully_random in (False, True) * 10:
            assert converge(ruled.node, mode, rules(fully_random=fully_random)) > 0
            assert converge(ruled.node, mode, rules(fully_random=fully_random)) == 0
    assert flows.sources == {OUT0[4]: flows.sent}
    assert flows.sent > 500


def test_the_assertion_above_can_fail(ruled: Node) -> None:
    """Flushing and refilling, as flannel does, is noticed."""
    with ruled.flows("pod", "outside") as flows:
        for _ in range(3):
            ruled.node.run("nft", "flush", "ruleset")
            with inside(ruled.node):
                remove_rules("legacy")
                remove_rules("nft")
            converge(ruled.node, "nft")
    assert set(flows.sources) == {OUT0[4], ADDRESSES[4]["pod"]}
    with inside(ruled.node):
        remove_rules("nft")


# ------------------------------------------------------------------------------------------------ repair


BREAKS = {
    "nft": ["flush ruleset", "delete table inet flanpy", "flush chain inet flanpy postrouting", "delete chain inet flanpy forward",
            "insert rule inet flanpy postrouting accept", "add rule inet flanpy forward drop", "add set inet flanpy s { type ipv4_addr; }",
            "add chain inet flanpy input { type filter hook input priority 0; policy drop; }"],
    "iptables": ["-t nat -F", "-t nat -D POSTROUTING 1", "-t nat -I FLANPY-POSTRTG -j ACCEPT", "-t filter -F FLANPY-FWD",
                 "-t filter -A FLANPY-FWD -j DROP", "-t nat -A POSTROUTING -j FLANPY-POSTRTG", "-t nat -R FLANPY-POSTRTG 2 -j RETURN"],
}  # fmt: skip


def test_whatever_is_broken_by_hand_is_mended_and_nothing_is_done_twice(ns: Namespace, mode: str) -> None:
    converge(ns, mode)
    good = ruleset(ns, mode)
    for broken in BREAKS["nft" if mode == "nft" else "iptables"]:
        ns.run(*(["nft"] if mode == "nft" else [mode]), *broken.split())
        assert sorted(ruleset(ns, mode)) != sorted(good), broken
        assert converge(ns, mode) == 1, broken
        assert sorted(ruleset(ns, mode)) == sorted(good), broken
        assert converge(ns, mode) == 0, broken


def test_a_running_keeper_looks_again_when_it_is_told_of_a_change_or_when_it_is_time(ns: Namespace) -> None:
    now = [100.0]
    firewall = Firewall(5.0, clock=lambda: now[0])
    assert firewall.converge(rules()) == 1
    ns.run("nft", "delete", "table", "inet", "flanpy")
    assert firewall.converge(rules()) == 0
    firewall.touched()
    assert firewall.is_due()
    assert firewall.converge(rules()) == 1
    ns.run("nft", "delete", "table", "inet", "flanpy")
    now[0] += 5.0
    assert firewall.is_due()
    assert firewall.converge(rules()) == 1
    firewall.is_watched = True
    firewall.touched()
    assert firewall.converge(rules()) == 0
    now[0] += 5.0
    assert not firewall.is_due(), "the kernel would have told"


def test_iptables_legacy_is_looked_at_by_the_clock_for_nobody_tells_of_its_changes(ns: Namespace) -> None:
    now = [100.0]
    firewall = Firewall(5.0, variant="legacy", clock=lambda: now[0])
    firewall.is_watched = True
    assert firewall.converge(rules(tool="iptables")) == 2
    ns.run("iptables-legacy", "-t", "nat", "-F")
    assert not firewall.is_due()
    now[0] += 5.0
    assert firewall.is_due()
    assert firewall.converge(rules(tool="iptables")) == 1
    assert "-A POSTROUTING" in ns.run("iptables-legacy-save")


def test_an_nft_that_speaks_in_other_words_is_not_made_to_write_for_ever(ns: Namespace, tmp_path: Path) -> None:
    strange = tmp_path / "nft"
    strange.write_text("""#!/bin/bash\nset -o pipefail\nnft "$@" | sed 's/"masquerade"/"masq"/g'\n""")
    strange.chmod(0o755)
    wanted = rules()
    keeper = NftFirewall(str(strange))
    arguments = (wanted.masquerade, wanted.forward, wanted.networks)
    assert keeper.ensure(*arguments, sweep=False)
    assert not keeper.ensure(*arguments, sweep=False)
    ns.run("nft", "insert", "rule", "inet", "flanpy", "postrouting", "accept")
    assert keeper.ensure(*arguments, sweep=False)
    assert not keeper.ensure(*arguments, sweep=False)


FOREIGN_NFT = "table inet mine { chain c { type filter hook forward priority 5; ip saddr 10.244.0.0/16 accept; }; }"
FOREIGN_IPTABLES = [
    "-t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
    "-A FORWARD -s 10.244.7.0/24 -j LOG",
    "-N FLANPY-OTHER",
]


def test_the_rules_of_others_are_not_touched(ns: Namespace, mode: str) -> None:
    ns.run("nft", FOREIGN_NFT)
    for line in FOREIGN_IPTABLES:
        ns.run("iptables-nft" if mode == "nft" else mode, *line.split())
    before = {each: ruleset(ns, each) for each in MODES}
    converge(ns, mode)
    converge(ns, mode, rules(subnet=9))
    found = find_rules(MODES[mode][1])
    assert found
    assert remove_rules(MODES[mode][1]) == found
    after = {each: ruleset(ns, each) for each in MODES}
    assert "FLANPY-POSTRTG" not in str(after)
    assert set(before[mode]) <= set(after[mode])
    assert find_rules(MODES[mode][1]) == ()


def test_rules_of_an_earlier_subnet_are_gone_once_those_of_the_new_one_are_there(ns: Namespace, mode: str) -> None:
    converge(ns, mode)
    assert "10.244.7.0/24" in str(ruleset(ns, mode))
    converge(ns, mode, rules(subnet=9))
    assert "10.244.9.0/24" in str(ruleset(ns, mode))
    assert "10.244.7.0/24" not in str(ruleset(ns, mode))


def test_what_is_switched_off_goes_and_the_rest_stays(ns: Namespace, mode: str) -> None:
    converge(ns, mode)
    converge(ns, mode, rules(ip_masq=False))
    assert "masquerade" not in str(ruleset(ns, mode)).lower()
    assert {name for _, name in counters(ns, mode)} == {"from network", "to network"}
    converge(ns, mode, rules(ip_masq=False, forward_rules=False))
    assert find_rules(MODES[mode][1]) == ()


def test_another_tool_takes_over_and_leaves_nothing_of_the_first(ns: Namespace) -> None:
    converge(ns, "nft")
    converge(ns, "iptables-nft")
    assert find_rules("nft") == tuple(
        f"{command} -t {table} chain {chain}"
        for command in ("iptables", "ip6tables")
        for table, chain in (("nat", "FLANPY-POSTRTG"), ("filter", "FLANPY-FWD"))
    )
    converge(ns, "nft")
    assert find_rules("nft") == ("nft table inet flanpy",)


# ------------------------------------------------------------------------------------------------ flanneld before us


FLANNEL = """*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.7.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
FLANNEL_NFT = """table ip flannel-ipv4 { chain postrtg { type nat hook postrouting priority srcnat;
 ip saddr 10.244.7.0/24 ip daddr 10.244.0.0/16 return; ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade; }; }"""


def leave_flannel_s(ns: Namespace, command: str) -> None:
    ns.script(f"{command}-restore --noflush <<'END'\n{FLANNEL}END\n")
    ns.run("nft", FLANNEL_NFT)


@pytest.mark.parametrize("mode", ["nft", "iptables-nft", "iptables-legacy"])
def test_what_a_flanneld_of_this_node_has_left_goes_when_ours_is_there(ns: Namespace, mode: str) -> None:
    command = "iptables-legacy" if mode == "iptables-legacy" else "iptables-nft"
    leave_flannel_s(ns, command)
    converge(ns, mode)
    left = ns.run("nft", "list", "ruleset") + ns.run(f"{command}-save")
    assert "flannel" not in left.lower()
    assert find_rules(MODES[mode][1])


def test_what_a_flanneld_of_another_network_keeps_is_left_alone(ns: Namespace) -> None:
    leave_flannel_s(ns, "iptables-nft")
    before = ns.run("nft", "-s", "list", "ruleset")
    converge(ns, "nft", FirewallRules())
    assert ns.run("nft", "-s", "list", "ruleset") == before


# ------------------------------------------------------------------------------------------------ what the kernel tells


def test_a_change_of_ours_is_told_whoever_made_it_and_one_of_others_is_not(ns: Namespace) -> None:
    told: queue.SimpleQueue[bool] = queue.SimpleQueue()
    converge(ns, "nft")
    converge(ns, "iptables-nft", replace(rules(), masquerade=()))
    converge(ns, "nft")
    with closing(RulesWatch(lambda: told.put(True))):
        ns.run("nft", FOREIGN_NFT)
        ns.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "-j", "MASQUERADE")
        ns.run("nft", "flush", "chain", "inet", "flanpy", "postrouting")
        assert told.get(timeout=2)
        with pytest.raises(queue.Empty):
            told.get(timeout=0.2)
        converge(ns, "iptables-nft")
        assert told.get(timeout=2)
        for words in ("-t nat -F FLANPY-POSTRTG", "-D FORWARD 1"):
            while not told.empty():
                told.get()
            ns.run("iptables-nft", *words.split())
            assert told.get(timeout=2), words
        ns.run("nft", "flush", "ruleset")
        assert told.get(timeout=2)


# ------------------------------------------------------------------------------------------------ what is missing


DENIED = """
from flanpy.errors import PlatformError
from flanpy.kernel.firewall import Firewall
from tests.support.firewall import rules
try:
    Firewall(variant={variant!r}).converge(rules(tool={tool!r}))
except PlatformError as error:
    print(error)
"""


def test_without_the_capability_the_error_names_it(ns: Namespace, mode: str) -> None:
    tool, variant = MODES[mode]
    code = DENIED.format(tool=tool, variant=variant)
    without = ["setpriv", "--bounding-set=-net_admin,-net_raw", "env", f"PYTHONPATH={Path(__file__).parents[2]}"]
    said = ns.run(*without, sys.executable, "-c", code)
    assert re.fullmatch(r"(nft|iptables)\S*: .*; run as root; .*CAP_NET_ADMIN.*\n", said)


def test_a_tool_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall_tool, "TIMEOUT_S", 0.1)
    with pytest.raises(PlatformError, match=r"sleep has not ended within 0 s; it was stopped"):
        firewall_tool.run_tool("sleep", "60")


def test_a_script_that_nft_refuses_changes_nothing_and_is_told_in_nft_s_words(ns: Namespace) -> None:
    converge(ns, "nft")
    before = ruleset(ns, "nft")
    with pytest.raises(PlatformError, match=r"nft: .*syntax error"):
        firewall_tool.demand("nft", "-f", "-", text="flush table inet flanpy\nnonsense\n")
    assert ruleset(ns, "nft") == before
