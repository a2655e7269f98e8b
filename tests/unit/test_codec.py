"""etcd keys and values: byte for byte flannel's, and every hostile value refused by its field."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.core.codec import MAX_VALUE_BYTES, decode_attributes, decode_lease, encode_attributes, key_of, subnets_of
from flanpy.errors import CodecError
from flanpy.model import FlanpyInfo, Lease, NodeAttributes, Record, Subnets

V4, V6 = IPv4Network("10.12.13.0/24"), IPv6Network("fd00:12:13::/56")
ADDRESS = IPv4Address("172.31.9.1")

KEYS = {
    "subnets/10.5.52.0-24": Subnets(IPv4Network("10.5.52.0/24")),
    "subnets/10.12.13.0-24&fd00:12:13::-56": Subnets(V4, V6),
    "subnets/0.0.0.0-0&fd00:12:13::-56": Subnets(None, V6),
}

ON_THE_WIRE = {
    b'{"PublicIP":"172.31.9.1","PublicIPv6":null}': NodeAttributes(ADDRESS),
    b'{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}': NodeAttributes(
        ADDRESS, None, "vxlan", '{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}'
    ),
    b'{"PublicIP":"172.31.9.1","PublicIPv6":"fd00::1","BackendType":"host-gw"}': NodeAttributes(
        ADDRESS, IPv6Address("fd00::1"), "host-gw"
    ),
    b'{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendData":{"flanpy":{"node":"n-1","features":["ecn","superpacket"]}}}': (
        NodeAttributes(ADDRESS, flanpy=FlanpyInfo("n-1", frozenset({"ecn", "superpacket"})))
    ),
    b'{"PublicIP":"172.31.9.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"flanpy":{"node":"n-1","features":[]}},'
    b'"BackendV6Data":{"VNI":1}}': NodeAttributes(ADDRESS, None, "vxlan", '{"VNI":1}', '{"VNI":1}', FlanpyInfo("n-1")),
}


@pytest.mark.parametrize(("key", "subnets"), KEYS.items())
def test_keys_are_flannels(key: str, subnets: Subnets) -> None:
    assert (key_of(subnets), subnets_of(key)) == (key, subnets)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "subnets/",
        "subnets/10.5.52.0",
        "subnets/10.5.52.0-",
        "subnets/10.5.52.0-33",
        "subnets/10.5.52.1-24",
        "subnets/010.5.52.0-24",
        "subnets/10.5.52.0-024",
        "subnets/10.5.52-24",
        "subnets/10.5.52.0-24 ",
        "subnets/10.5.52.0-24\n",
        "subnets/10.5.52.0-24&",
        "subnets/10.5.52.0-24&fd00::1-56",
        "subnets/10.5.52.0-24&FD00::-56",
        "subnets/10.5.52.0-24&fd00:0::-56",
        "subnets/10.5.52.0-24&fd00::-129",
        "subnets/١٠.5.52.0-24",
        "subnets/$(reboot)-24",
        "subnets/../config",
        "subnets/10.5.52.0-24/more",
    ],
)
def test_a_key_of_another_spelling_is_refused(key: str) -> None:
    with pytest.raises(CodecError, match="^key "):
        subnets_of(key)


@pytest.mark.parametrize(("value", "attributes"), ON_THE_WIRE.items())
def test_values_are_flannels_byte_for_byte(value: bytes, attributes: NodeAttributes) -> None:
    assert (encode_attributes(attributes), decode_attributes(value)) == (value, attributes)


def test_keys_of_a_value_are_compared_as_go_does() -> None:
    value = b' { "publicip" : "172.31.9.1", "BACKENDTYPE":"vxlan", "backenddata": { "VNI" : 1 }, "Unknown": [1, 2.5] } '
    assert decode_attributes(value) == NodeAttributes(ADDRESS, None, "vxlan", '{"VNI":1}')


def test_foreign_backend_data_keeps_its_order_and_numbers() -> None:
    value = b'{"PublicIP":"172.31.9.1","BackendData":{"b":1.50,"a":[true,null,"<\\u00e9>"],"c":1e400}}'
    data = decode_attributes(value).backend_data
    assert data == '{"b":1.50,"a":[true,null,"\\u003cé\\u003e"],"c":1e400}'


DEEP = 100_000

HOSTILE = {
    b"": "value: ",
    b"null": "value: not a JSON object",
    b"[]": "value: not a JSON object",
    b'"172.31.9.1"': "value: not a JSON object",
    b"{": "value: line 1",
    b"\xff\xfe{}": "value: not UTF-8",
    b'\xef\xbb\xbf{"PublicIP":"172.31.9.1"}': "value: ",
    b'{"PublicIP":"172.31.9.1"} x': "value: line 1",
    b"{}": "PublicIP: None is not",
    b'{"PublicIP":3}': "PublicIP: 3 is not",
    b'{"PublicIP":"0.0.0.0"}': "PublicIP: 0.0.0.0 is no address, and there is no PublicIPv6",
    b'{"PublicIP":"0.0.0.0","PublicIPv6":null}': "PublicIP: 0.0.0.0 is no address, and there is no PublicIPv6",
    b'{"PublicIP":"::1"}': "PublicIP: '::1' is not",
    b'{"PublicIP":"172.31.9.1; reboot"}': "PublicIP: '172.31.9.1; reboot' is not",
    b'{"PublicIP":"172.31.09.1"}': "PublicIP: ",
    b'{"PublicIP":"172.31.9.1","publicip":"172.31.9.2"}': "value: publicip: given twice",
    b'{"PublicIP":"172.31.9.1","PublicIPv6":"fe80::1%eth0"}': "PublicIPv6: ",
    b'{"PublicIP":"172.31.9.1","PublicIPv6":7}': "PublicIPv6: ",
    b'{"PublicIP":"172.31.9.1","BackendType":"udp;reboot"}': "BackendType: ",
    b'{"PublicIP":"172.31.9.1","BackendType":["udp"]}': "BackendType: ",
    b'{"PublicIP":"172.31.9.1","BackendData":NaN}': "value: NaN",
    b'{"PublicIP":"172.31.9.1","BackendData":-Infinity}': "value: -Infinity",
    b'{"PublicIP":"172.31.9.1","BackendData":"\\ud800"}': "value: a string holds a lone surrogate",
    b'{"PublicIP":"172.31.9.1","BackendData":{"flanpy":3}}': "BackendData.flanpy: 3 is not an object",
    b'{"PublicIP":"172.31.9.1","BackendData":{"flanpy":{"node":"$(x)"}}}': "BackendData.flanpy.node: ",
    b'{"PublicIP":"172.31.9.1","BackendData":{"flanpy":{"features":[]}}}': "BackendData.flanpy.node: None",
    b'{"PublicIP":"172.31.9.1","BackendData":{"flanpy":{"node":"n","features":"ecn"}}}': "BackendData.flanpy.features: ",
    b'{"PublicIP":"172.31.9.1","BackendData":{"flanpy":{"node":"n","features":[1]}}}': "BackendData.flanpy.features: 1 is not",
    b'{"PublicIP":"172.31.9.1","BackendData":' + b"[" * 30_000 + b"]" * 30_000 + b"}": "value: nested deeper than 32",
    b'{"PublicIP":"172.31.9.1","BackendData":' + b"9" * 5_000 + b"}": "value: ",
    b'{"PublicIP":"172.31.9.1","X":"' + b"a" * (1 << 20) + b'"}': f"value: 1048608 bytes (at most {MAX_VALUE_BYTES})",
}


@pytest.mark.parametrize(("value", "start"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_a_hostile_value_is_refused_with_its_field(value: bytes, start: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode_attributes(value)
    assert str(caught.value).startswith(start)
    assert len(str(caught.value)) < 250 and str(caught.value).isprintable()


@pytest.mark.parametrize("value", ON_THE_WIRE)
def test_every_prefix_of_a_good_value_is_refused(value: bytes) -> None:
    for length in range(len(value)):
        with pytest.raises(CodecError):
            decode_attributes(value[:length])


@given(st.binary() | st.text().map(str.encode))
def test_garbage_is_refused_and_never_raises_anything_else(value: bytes) -> None:
    with pytest.raises(CodecError):
        decode_attributes(value)


@given(st.text())
def test_a_garbage_key_is_refused_and_never_raises_anything_else(key: str) -> None:
    with pytest.raises(CodecError):
        subnets_of(f"subnets/{key}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_refused_or_decoded(value: object) -> None:
    try:
        decode_attributes(json.dumps({"PublicIP": "172.31.9.1", "BackendData": value}).encode())
    except CodecError as exc:
        assert str(exc)


ATTRIBUTES = st.builds(
    NodeAttributes,
    public_ip=st.ip_addresses(v=4).filter(int),
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_type=st.sampled_from(["", "vxlan", "host-gw", "wireguard"]),
    backend_data=st.none() | st.sampled_from(['{"VNI":1}', '{"PublicKey":"b64=","Port":51820}']),
    backend_v6_data=st.none() | st.just('{"VNI":2}'),
    flanpy=st.none()
    | st.builds(FlanpyInfo, st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True), st.just(frozenset({"ecn"}))),
)


@given(ATTRIBUTES, st.ip_addresses(v=6))
def test_a_node_without_ipv4_has_flannels_empty_address_in_its_lease(attributes: NodeAttributes, address: IPv6Address) -> None:
    node = replace(attributes, public_ip=None, public_ipv6=address)
    value = encode_attributes(node)
    assert value.startswith(b'{"PublicIP":"0.0.0.0","PublicIPv6":"')
    assert decode_attributes(value) == node


@given(ATTRIBUTES)
def test_what_is_encoded_decodes_to_the_same(attributes: NodeAttributes) -> None:
    assert decode_attributes(encode_attributes(attributes)) == attributes


LINE = st.from_regex(
    r'\{"PublicIP":"[0-9]{1,3}(\.[0-9]{1,3}){3}","PublicIPv6":null(,"BackendData":\{"flanpy":\{"node":"[a-z.-]{1,3}","features":'
    r'\[("[a-z_0-9-]{1,4}",?){0,3}\]\}\})?\}',
    fullmatch=True,
)


def told(value: bytes) -> NodeAttributes | None:
    try:
        return decode_attributes(value)
    except CodecError:
        return None


@given(LINE)
def test_the_short_way_for_udp_leases_reads_what_the_long_way_reads(line: str) -> None:
    """A blank keeps a value off the short way."""
    assert told(line.encode()) == told(b" " + line.encode())


def test_beside_data_that_is_no_object_stands_the_flanpy_object() -> None:
    attributes = NodeAttributes(
        IPv4Address("192.0.2.1"), backend_type="extension", backend_data='"text"', flanpy=FlanpyInfo("n", frozenset({"ecn"}))
    )
    value = encode_attributes(attributes)
    assert value == (
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"text",'
        b'"flanpy":{"node":"n","features":["ecn"]}}'
    )
    assert decode_attributes(value) == attributes


def test_a_lease_is_a_record_understood() -> None:
    value, attributes = next(iter(ON_THE_WIRE.items()))
    record = Record("subnets/10.5.52.0-24", value, 3, 4, 5)
    assert decode_lease(record) == Lease(Subnets(IPv4Network("10.5.52.0/24")), attributes, 3, 4, 5)
    with pytest.raises(CodecError, match="^subnets/10.5.52.0-24: PublicIP: "):
        decode_lease(replace(record, value=b"{}"))
