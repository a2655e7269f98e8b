"""IPv6 through the pure core: verdicts, cutting, merging, hop limit and ECN, and its ICMPv6 errors, byte for byte against scapy."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import (
    AH,
    TCP,
    UDP,
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
    raw,
)

from tests.support.core import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, PEER_B, PEER_ECN, PLAIN, TUNNEL6, Core, Vnet, Write
from tests.support.naive import Frame, packets_of
from tests.support.packets import HERE6, THERE6, Packet, decremented, pattern, pseudo_sum

OUT = Packet(source=HERE6, destination=THERE6, flow_label=0x12345)
BACK = replace(OUT, source=THERE6, destination=HERE6)
TIMESTAMPS = (("NOP", None), ("NOP", None), ("Timestamp", (12345, 67890)))
DATA = replace(OUT, payload=pattern(100)).raw()
FLAGS = Vnet(NEEDS_CSUM, GSO_TCPV6, 60, 1000, 40, 16)


def header(**changes: object) -> IPv6:
    return IPv6(**{"src": HERE6, "dst": THERE6, **changes})


def flow(count: int, base: Packet = BACK, size: int = 100) -> list[Packet]:
    """Consecutive packets of one flow."""
    return [replace(base, payload=pattern(size, i), sequence=base.sequence + i * size) for i in range(count)]


def written(packets: list[bytes], *, uso: bool = False) -> list[Write]:
    """What a train of these becomes; the writes are checked to stand for exactly these packets."""
    core = Core(uso=uso)
    assert core.train(packets) == sum(map(len, packets))
    assert core.counts() == {}
    writes = core.writes()
    left = [each for write in writes for each in packets_of(Frame(write.vnet, write.packet))]
    assert sorted(left) == sorted(decremented(packet) for packet in packets)
    return writes


def merged(packets: list[Packet], *, uso: bool = False) -> list[int]:
    return [write.packets for write in written([packet.raw() for packet in packets], uso=uso)]


# ---------------------------------------------------------------------------------------------------------------- verdicts

MARTIANS = ["::", "::1", "ff02::1", "ff0e::5", "fe80::5", "febf::1", "::ffff:10.5.2.7", "::10.5.2.7"]


@pytest.mark.parametrize(
    ("packet", "vnet", "verdict"),
    [
        (DATA[:39], PLAIN, "drop_truncated"),
        (DATA[:-1], PLAIN, "drop_truncated"),
        (raw(header(dst="fd05:0:0:77::1") / Raw(b"x")), PLAIN, "drop_no_route"),
        (raw(header(dst="fd05:0:0:1::9") / Raw(b"x")), PLAIN, "drop_no_route"),
        (raw(header(hlim=1) / Raw(b"x")), PLAIN, "drop_ttl"),
        (raw(header(hlim=0) / Raw(b"x")), PLAIN, "drop_ttl"),
        (raw(header() / UDP() / Raw(pattern(1425))), PLAIN, "drop_too_big"),
        (raw(header(plen=0, nh=0)), PLAIN, "drop_bad_header"),
        *((raw(header(dst=address) / Raw(b"x")), PLAIN, "drop_martian") for address in MARTIANS),
        *((raw(header(src=address) / Raw(b"x")), PLAIN, "drop_martian") for address in MARTIANS),
        (DATA, replace(FLAGS, gso_type=GSO_TCPV4), "drop_bad_offload"),
        (DATA, replace(FLAGS, gso_type=GSO_UDP_L4), "drop_bad_offload"),
        (DATA, replace(FLAGS, gso_size=0), "drop_bad_offload"),
        (raw(header() / IPv6ExtHdrFragment(m=1) / TCP() / Raw(pattern(99))), FLAGS, "drop_bad_offload"),
        (raw(header() / IPv6ExtHdrRouting() / TCP() / Raw(pattern(99))), FLAGS, "drop_bad_offload"),
        (raw(header() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(24))]) / TCP()), FLAGS, "drop_bad_offload"),
        (raw(header(nh=6) / Raw(b"x" * 19)), FLAGS, "drop_truncated"),
        (DATA, Vnet(NEEDS_CSUM, 0, 0, 0, 39, 16), "drop_bad_offload"),
        (DATA, Vnet(NEEDS_CSUM, 0, 0, 0, 40, len(DATA) - 41), "drop_bad_offload"),
    ],
)  # fmt: skip
def test_encap_refuses(packet: bytes, vnet: Vnet, verdict: str) -> None:
    core = Core()
    assert core.encap(packet, vnet) == verdict
    assert core.counts() == {verdict: (1, len(packet))}


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (replace(BACK, source="fd05:0:0:3::1").raw(), "drop_spoofed"),
        (replace(BACK, source="fd05:0:0:9::1").raw(), "drop_spoofed"),
        (replace(BACK, source="fd05:0:0:1::1").raw(), "drop_spoofed"),
        (replace(BACK, destination="fd05:0:0:3::1").raw(), "drop_not_local"),
        (replace(BACK, ttl=1).raw(), "drop_ttl"),
        (replace(BACK, source="ff02::1").raw(), "drop_martian"),
        (BACK.raw()[:-1], "drop_truncated"),
    ],
)
def test_decap_refuses(packet: bytes, verdict: str) -> None:
    core = Core()
    core.train([packet])
    assert core.counts() == {verdict: (1, len(packet))}
    assert core.expired() == ([packet] if verdict == "drop_ttl" else [])


def test_without_source_check_only_our_own_addresses_are_spoofed() -> None:
    core = Core(source_check=False)
    core.train([replace(BACK, source="fd05:0:0:3::1").raw(), replace(BACK, source="fd05:0:0:1::9").raw()])
    assert core.counts() == {"drop_spoofed": (1, 60)}
    assert len(core.writes()) == 1


def test_a_packet_longer_than_sixteen_bits_can_say_is_refused() -> None:
    longest = raw(header(nh=17) / Raw(bytes(65535 - 40)))
    assert Core(mtu=65507).encap(longest) == "drop_too_big"
    assert Core(mtu=65507).encap(raw(header(nh=17) / Raw(bytes(65535)))) == "drop_truncated"


@pytest.mark.parametrize("length", range(40))
def test_every_prefix_of_a_header_is_truncated(length: int) -> None:
    core = Core()
    assert core.encap(DATA[:length]) == "drop_truncated"
    core.train([replace(BACK, payload=b"x").raw()[:length]])
    assert core.counts() == {"drop_truncated": (2, 2 * length)}


CHAINS = {
    "hop by hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / TCP() / Raw(b"x" * 50),
    "two options": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP() / Raw(b"x" * 50),
    "routing": IPv6ExtHdrRouting(addresses=["fd05:0:0:2::1"]) / TCP() / Raw(b"x" * 50),
    "fragment": IPv6ExtHdrFragment(m=1, id=7) / UDP() / Raw(b"x" * 56),
    "seven options": IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt()
    / TCP(),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_extension_headers_are_carried_as_they_are_also_cut_off_anywhere(chain: object) -> None:
    whole = raw(header() / chain)
    back = raw(header(src=THERE6, dst=HERE6) / chain)
    for length in range(41, len(whole) + 1):
        shorter = whole[:4] + (length - 40).to_bytes(2, "big") + whole[6:length]
        assert Core().out(shorter) == [decremented(shorter)]
        shorter = back[:4] + (length - 40).to_bytes(2, "big") + back[6:length]
        assert [write.packet for write in written([shorter])] == [decremented(shorter)]


# ----------------------------------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    "packet",
    [
        replace(OUT, payload=pattern(4260)),
        replace(OUT, payload=pattern(1400)),
        replace(OUT, payload=pattern(1)),
        replace(OUT, payload=pattern(4001), options=TIMESTAMPS),
        replace(OUT, payload=pattern(4001), options=(*TIMESTAMPS, ("SAck", (1, 2, 3, 4)), ("NOP", None), ("NOP", None))),
        replace(OUT, payload=pattern(3999), ip_options=bytes(4), options=TIMESTAMPS),
        replace(OUT, payload=pattern(4000), flags="FPAEC"),
        replace(OUT, payload=pattern(4000), sequence=0xFFFFFFFF - 2000, tos=0xBB, ttl=2),
        replace(OUT, payload=b"\xff" * 4000),
        replace(OUT, payload=pattern(5000), udp=True),
        replace(OUT, payload=pattern(65535 - 60)),
    ],
    ids=[
        "equal", "one segment", "one byte", "timestamps", "longest options", "destination options", "all flags", "wraps, class, limit 2",
        "ones", "udp", "largest",
    ],
)  # fmt: skip
def test_a_superpacket_is_cut_as_the_oracle_cuts_it(packet: Packet) -> None:
    gso_size = 1472 - packet.headers_bytes
    data, vnet = packet.superpacket(gso_size)
    assert Core(max_segments=127).out(data, vnet) == packet.segments(gso_size)


@pytest.mark.parametrize("udp", [False, True])
def test_an_unfinished_checksum_is_finished(udp: bool) -> None:
    packet = replace(OUT, payload=pattern(99), udp=udp)
    assert Core().out(*packet.unfinished()) == [replace(packet, ttl=63).raw()]


def test_the_mark_is_copied_out_to_peers_that_combine_it_and_the_class_stays_inside() -> None:
    core = Core()
    for subnet in (3, 4):
        assert core.encap(replace(OUT, destination=f"fd05:0:0:{subnet}::1", tos=0xB9).raw()) == "encapsulated"
    assert {(send.hop, send.tos) for send in core.sends()} == {(PEER_B, 0), (PEER_ECN, 1)}


def test_an_outer_mark_reaches_the_traffic_class() -> None:
    core = Core()
    core.train([replace(BACK, tos=0xBA).raw()], tos=3)
    core.train([replace(BACK, tos=0xB8).raw()], tos=3)
    assert [write.packet for write in core.writes()] == [decremented(replace(BACK, tos=0xBB).raw())]
    assert core.counts() == {"drop_ecn": (1, 60)}


# ----------------------------------------------------------------------------------------------------------------- merging


def test_a_train_becomes_one_write_whose_headers_say_so() -> None:
    packets = flow(44, size=1412)
    (write,) = written([packet.raw() for packet in packets])
    assert write.vnet == Vnet(NEEDS_CSUM, GSO_TCPV6, 60, 1412, 40, 16)
    assert (write.packets, int.from_bytes(write.packet[4:6], "big")) == (44, 20 + 44 * 1412)
    assert write.packet[56:58] == pseudo_sum(write.packet).to_bytes(2, "big")


def test_udp_is_merged_where_the_kernel_takes_it() -> None:
    packets = flow(4, replace(BACK, udp=True))
    assert merged(packets, uso=True) == [4]
    assert merged(packets) == [1, 1, 1, 1]
    (write,) = written([packet.raw() for packet in packets], uso=True)
    assert write.vnet == Vnet(NEEDS_CSUM, GSO_UDP_L4, 48, 100, 40, 6)


def test_both_families_in_one_batch_are_merged_each_by_itself() -> None:
    one, two = flow(4), flow(4, replace(BACK, source="10.5.2.7", destination="10.5.1.5"))
    two = [replace(packet, ident=i) for i, packet in enumerate(two)]
    assert merged([packet for pair in zip(one, two, strict=True) for packet in pair]) == [4, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"flow_label": 7}, [2, 1, 1]),
        ({"tos": 1}, [2, 1, 1]),
        ({"ttl": 63}, [2, 1, 1]),
        ({"ack": 78}, [2, 1, 1]),
        ({"ip_options": bytes(4)}, [2, 1, 1]),
        ({"flags": "FA"}, [2, 1, 1]),
        ({"payload": pattern(101, 2)}, [2, 1, 1]),
        ({"payload": pattern(99, 2)}, [3, 1]),
        ({"flags": "PA"}, [3, 1]),
        ({"source": "fd05:0:0:2::8"}, [3, 1]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_packet_that_differs_ends_the_write(changes: dict[str, object], expected: list[int]) -> None:
    packets = flow(4)
    packets[2] = replace(packets[2], **changes)  # type: ignore[arg-type]
    if "source" in changes:
        packets[3] = replace(packets[3], sequence=packets[2].sequence)
    assert merged(packets) == expected


@pytest.mark.parametrize("inside", [TCP() / Raw(pattern(44)), IPv6ExtHdrDestOpt() / TCP()], ids=["tcp", "more headers"])
def test_a_fragment_ends_every_flow_of_its_addresses(inside: object) -> None:
    one, other = flow(4), flow(4, replace(BACK, source="fd05:0:0:2::8"))
    fragment = raw(header(src=THERE6, dst=HERE6) / IPv6ExtHdrFragment(offset=100, id=3) / inside)
    raws = [packet.raw() for pair in zip(one, other, strict=True) for packet in pair]
    assert [write.packets for write in written([*raws[:4], fragment, *raws[4:]])] == [2, 4, 1, 2]


ROUTING = IPv6ExtHdrRouting(addresses=["fd05:0:0:9::1"])


@pytest.mark.parametrize(
    "chain", [ROUTING, AH(nh=6, payloadlen=4, seq=1, icv=bytes(12)), IPv6ExtHdrDestOpt() / ROUTING], ids=["routing", "ah", "both"]
)
def test_what_is_behind_a_header_that_is_not_read_is_not_overtaken(chain: object) -> None:
    """It may be of the flow: a later segment that joined the write before it would come first."""
    one, other = flow(4), flow(4, replace(BACK, source="fd05:0:0:2::8"))
    hidden = raw(header(src=THERE6, dst=HERE6) / chain / TCP() / Raw(pattern(44)))
    raws = [packet.raw() for pair in zip(one, other, strict=True) for packet in pair]
    assert [write.packets for write in written([*raws[:4], hidden, *raws[4:]])] == [2, 4, 1, 2]


@pytest.mark.parametrize("bad", [0, 2])
def test_a_wrong_checksum_goes_as_it_is(bad: int) -> None:
    raws = [packet.raw() for packet in flow(4)]
    raws[bad] = raws[bad][:-1] + bytes([raws[bad][-1] ^ 1])
    core = Core()
    core.train(raws)
    assert [write.packets for write in core.writes()] == {0: [1, 3], 2: [2, 1, 1]}[bad]


# ------------------------------------------------------------------------------------------------------------------ ICMPv6

ANSWERED = {
    "drop_no_route": ICMPv6DestUnreach(code=0),
    "drop_ttl": ICMPv6TimeExceeded(),
    "drop_too_big": ICMPv6PacketTooBig(mtu=1400),
}


def oracle(verdict: str, packet: bytes, mtu: int = 1400) -> bytes:
    message = ANSWERED[verdict].copy()
    if verdict == "drop_too_big":
        message.mtu = mtu
    return raw(IPv6(src=str(TUNNEL6), dst=IPv6(packet).src, hlim=64) / message / Raw(packet[: 1280 - 48]))


@pytest.mark.parametrize("verdict", ANSWERED)
@pytest.mark.parametrize("size", [0, 1, 1171, 1172, 1173, 1412])
def test_the_answer_is_byte_for_byte_the_oracles(verdict: str, size: int) -> None:
    packet = replace(OUT, payload=pattern(size)).raw()
    assert Core().icmp(verdict, packet) == oracle(verdict, packet)


@pytest.mark.parametrize(("mtu", "said"), [(0, 1280), (1279, 1280), (1280, 1280), (1281, 1281), (70000, 70000)])
def test_no_packet_too_big_names_less_than_what_every_link_carries(mtu: int, said: int) -> None:
    assert Core().icmp("drop_too_big", DATA, mtu=mtu) == oracle("drop_too_big", DATA, said)


@pytest.mark.parametrize("message", [*ANSWERED.values(), ICMPv6ND_Redirect()], ids=["unreachable", "time", "too big", "redirect"])
@pytest.mark.parametrize(
    "chain",
    [
        None,
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrFragment(m=1),
        ROUTING,
        AH(nh=58, payloadlen=4, seq=1, icv=bytes(12)),
        ROUTING / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrDestOpt(),
    ],
    ids=["plain", "options", "first fragment", "routing", "ah", "long"],
)
def test_errors_and_redirects_are_never_answered(message: object, chain: object) -> None:
    packet = raw(header() / message if chain is None else header() / chain / message)
    assert Core().icmp("drop_ttl", packet) == b""


def test_an_echo_is_answered_and_a_later_fragment_of_icmp_is_not() -> None:
    echo = raw(header() / ICMPv6EchoRequest(data=b"x"))
    later = raw(header() / IPv6ExtHdrFragment(offset=9, nh=58) / Raw(b"\x80" * 64))
    of_udp = raw(header() / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(b"x" * 64))
    assert Core().icmp("drop_ttl", echo) == oracle("drop_ttl", echo)
    assert Core().icmp("drop_ttl", later) == b""
    assert Core().icmp("drop_too_big", of_udp) == oracle("drop_too_big", of_udp)
    assert Core().icmp("drop_ttl", raw(header(nh=58))) == b"", "no type to judge"


def test_what_is_behind_headers_is_answered_only_if_it_is_known_to_be_no_error() -> None:
    segment = raw(header() / ROUTING / TCP())
    assert Core().icmp("drop_too_big", segment) == oracle("drop_too_big", segment)
    echo = raw(header() / ROUTING / ICMPv6EchoRequest(data=b"x"))
    assert Core().icmp("drop_ttl", echo) == oracle("drop_ttl", echo)
    at = 40 + 24
    for length in range(at, len(echo)):  # cut anywhere before the type, or right behind it
        cut = echo[:4] + (length - 40).to_bytes(2, "big") + echo[6:length]
        assert bool(Core().icmp("drop_ttl", cut)) == (length > at)
    endless = raw(header(nh=43) / Raw(bytes([43, 0, 0, 0, 0, 0, 0, 0]) * 20))
    assert Core().icmp("drop_ttl", endless) == b""
    later = raw(header() / ROUTING / IPv6ExtHdrFragment(offset=9, nh=58) / Raw(b"\x80" * 64))
    assert Core().icmp("drop_ttl", later) == b""
    assert Core().icmp("drop_ttl", raw(header() / IPv6ExtHdrFragment(offset=9, nh=43) / Raw(bytes(64)))) == b""


@pytest.mark.parametrize("address", MARTIANS)
def test_nothing_is_sent_about_an_address_that_is_not_one_host(address: str) -> None:
    assert Core().icmp("drop_ttl", raw(header(src=address) / UDP())) == b""
    assert Core().icmp("drop_ttl", raw(header(dst=address) / UDP())) == b""


def test_without_a_tunnel_address_of_the_family_nothing_is_answered() -> None:
    core = Core()
    core.context.tunnel_address6.bytes = bytes(16)
    assert core.icmp("drop_ttl", DATA) == b""
    assert core.icmp("drop_ttl", Packet().raw()) != b""
    core.context.tunnel_address = 0
    assert core.icmp("drop_ttl", Packet().raw()) == b""


@pytest.mark.parametrize("room", [0, 47, 48, 207])
def test_an_answer_that_does_not_fit_is_not_written(room: int) -> None:
    assert len(oracle("drop_ttl", DATA)) == 208
    assert Core().icmp("drop_ttl", DATA, room=room) == b""


# ----------------------------------------------------------------------------------------------------------------- hostile

drawn_chain = st.lists(st.sampled_from([0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 255]), max_size=6)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 255), drawn_chain, st.binary(max_size=120), st.integers(0, 0xFFFF))
def test_any_chain_of_headers_gets_a_verdict_and_leaves_unharmed(first: int, chain: list[int], rest: bytes, length: int) -> None:
    body = b"".join(bytes([number, len(rest) % 3]) + rest[:6].ljust(6, b"\0") for number in chain) + rest
    for said in (len(body), length):
        packet = b"\x60\0\0\0" + said.to_bytes(2, "big") + bytes([first, 64]) + OUT.raw()[8:40] + body
        core = Core()
        if core.encap(packet) == "encapsulated":
            (send,) = core.sends()
            assert send.packets == (decremented(packet[: 40 + said]),)
        back = packet[:8] + BACK.raw()[8:40] + packet[40:]
        core.train([back, back])
        delivered = sum(write.packets for write in core.writes())
        assert delivered + sum(packets for packets, _ in core.counts().values()) in (2, 3)
