"""The cluster's network config: flannel's defaults and rules, and every mistake told with its key path."""

import json
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanpy.config.backend_options import BACKEND_OPTIONS
from flanpy.config.network import parse_network_config, render_network_config
from flanpy.errors import ConfigError
from flanpy.model import BackendConfig, NetworkConfig

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "config" / "networks").glob("network-*.json"))


def v4(text: str) -> IPv4Network:
    return IPv4Network(text)


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(text)
    return list(caught.value.problems)


def test_the_least_config_gets_flannels_defaults() -> None:
    assert parse_network_config('{"Network": "10.5.0.0/16"}') == NetworkConfig(
        network=v4("10.5.0.0/16"),
        subnet_len=24,
        subnet_min=v4("10.5.1.0/24"),
        subnet_max=v4("10.5.255.0/24"),
        ipv6_network=None,
        ipv6_subnet_len=0,
        ipv6_subnet_min=None,
        ipv6_subnet_max=None,
        enable_ipv4=True,
        enable_ipv6=False,
        enable_nftables=False,
        backend=BackendConfig("udp", MappingProxyType({"Port": 8285})),
    )


def test_dual_stack_gets_flannels_defaults() -> None:
    config = parse_network_config(
        b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","EnableNFTables":true}'
    )
    assert (config.ipv6_network, config.ipv6_subnet_len) == (IPv6Network("fd00:5::/48"), 64)
    assert config.ipv6_subnet_min == IPv6Network("fd00:5:0:1::/64")
    assert config.ipv6_subnet_max == IPv6Network("fd00:5:0:ffff::/64")
    assert config.enable_nftables


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0/8", 24), ("10.5.0.0/21", 24), ("10.5.0.0/22", 24), ("10.5.0.0/23", 25), ("10.5.0.0/28", 30)],
)
def test_the_default_subnet_length_follows_the_network(network: str, length: int) -> None:
    assert parse_network_config(json.dumps({"Network": network})).subnet_len == length


@pytest.mark.parametrize(("network", "length"), [("fd00::/48", 64), ("fd00::/62", 64), ("fd00::/63", 65), ("fd00::/124", 126)])
def test_the_default_ipv6_subnet_length_follows_the_network(network: str, length: int) -> None:
    config = parse_network_config(json.dumps({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network}))
    assert (config.ipv6_subnet_len, config.network, config.subnet_min) == (length, None, None)


def test_keys_are_compared_as_go_does_and_null_and_zero_mean_the_default() -> None:
    text = """{"network": "10.5.0.0/16", "SUBNETLEN": 0, "SubnetMin": "0.0.0.0", "subnetmax": null,
      "backend": {"TYPE": "VXLAN", "vni": 7}}"""
    config = parse_network_config(text)
    assert (config.subnet_len, config.subnet_min, config.subnet_max) == (24, v4("10.5.1.0/24"), v4("10.5.255.0/24"))
    assert config.backend.type == "vxlan" and config.backend.options["VNI"] == 7


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ('{"Type":"udp"}', {"Port": 8285}),
        (
            '{"Type":"vxlan"}',
            {"VNI": 1, "Port": 0, "MTU": 0, "GBP": False, "Learning": False, "DirectRouting": False},
        ),
        ('{"Type":"host-gw"}', {}),
        (
            '{"Type":"wireguard","Mode":"IPv4"}',
            {
                "ListenPort": 51820,
                "ListenPortV6": 51821,
                "MTU": 0,
                "PSK": "",
                "PersistentKeepaliveInterval": 0,
                "Mode": "ipv4",
            },
        ),
        ('{"Type":"ipip","DirectRouting":true}', {"DirectRouting": True}),
        ('{"Type":"alloc"}', {}),
        (
            '{"Type":"extension","SubnetAddCommand":"/bin/add"}',
            {"PreStartupCommand": "", "PostStartupCommand": "", "SubnetAddCommand": "/bin/add", "SubnetRemoveCommand": ""},
        ),
    ],
)
def test_every_backend_has_flannels_options_and_defaults(backend: str, options: dict[str, object]) -> None:
    config = parse_network_config(f'{{"Network":"10.5.0.0/16","Backend":{backend}}}')
    assert dict(config.backend.options) == options
    assert list(config.backend.options) == [field.name for field in BACKEND_OPTIONS[config.backend.type]]


ONE_PROBLEM = {
    "{}": "Network: missing, for example 10.5.0.0/16",
    '{"Network":7}': "Network: 7 is not an IPv4 network such as 10.5.0.0/16",
    '{"Network":"10.5.0.0"}': "Network: '10.5.0.0' is not an IPv4 network such as 10.5.0.0/16",
    '{"Network":"10.5.0.0/255.255.0.0"}': "Network: '10.5.0.0/255.255.0.0' is not an IPv4 network such as 10.5.0.0/16",
    '{"Network":"10.5.1.0/16"}': "Network: 10.5.1.0/16 has bits set after the prefix; 10.5.0.0/16 was probably meant",
    '{"Network":"0.0.0.0/0"}': "Network: 0.0.0.0/0 is every address there is",
    '{"Network":"127.0.0.0/16"}': "Network: 127.0.0.0/16 overlaps 127.0.0.0/8, where no pod can live",
    '{"Network":"10.5.0.0/29"}': "Network: 10.5.0.0/29 is too narrow to hold four subnets (at most /28)",
    '{"Network":"10.5.0.0/16","SubnetLen":31}': "SubnetLen: 31 leaves no room for a host (18..30)",
    '{"Network":"10.5.0.0/16","SubnetLen":17}': "SubnetLen: 17 does not cut 10.5.0.0/16 into four subnets or more (18..30)",
    '{"Network":"10.5.0.0/16","SubnetLen":-1}': "SubnetLen: -1 is not a prefix length (0..128)",
    '{"Network":"10.5.0.0/16","SubnetLen":24.0}': "SubnetLen: 24.0 is not a prefix length (0..128)",
    '{"Network":"10.5.0.0/16","SubnetLen":NaN}': "SubnetLen: NaN is not a prefix length (0..128)",
    '{"Network":"10.5.0.0/16","SubnetLen":true}': "SubnetLen: true is not a prefix length (0..128)",
    '{"Network":"10.5.0.0/16","SubnetLen":"24"}': "SubnetLen: '24' is text, not a prefix length (0..128); write the number without quotes",
    '{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}': "SubnetMin: 10.6.0.0 is not in 10.5.0.0/16",
    '{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.7"}': "SubnetMax: 10.5.9.7 is not the first address of a /24 (10.5.9.0 is)",
    '{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}': (
        "SubnetMin: 10.5.9.0 is above SubnetMax 10.5.8.0: no subnet can be leased"
    ),
    '{"Network":"10.5.0.0/16","SubnetMin":9}': "SubnetMin: 9 is not an address such as 10.5.1.0",
    '{"Network":"10.5.0.0/16","EnableIPv6":1}': "EnableIPv6: 1 is neither true nor false",
    '{"Network":"10.5.0.0/16","EnableIPv4":false}': (
        "EnableIPv4: false, and EnableIPv6 is not true: at least one of them is needed"
    ),
    '{"Network":"10.5.0.0/16","EnableIPv6":true}': "IPv6Network: missing, for example fd00:5::/48",
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/125"}': (
        "IPv6Network: fd00::/125 is too narrow to hold four subnets (at most /124)"
    ),
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":127}': (
        "IPv6SubnetLen: 127 leaves no room for a host (50..126)"
    ),
    '{"Network":"10.5.0.0/16","Subnetlenn":24}': "Subnetlenn: unknown key; did you mean SubnetLen?",
    '{"Network":"10.5.0.0/16","network":"10.5.0.0/16"}': "Network: given twice",
    '{"Network":"10.5.0.0/16","colour":"green"}': "colour: unknown key",
    '{"Network":"10.5.0.0/16","a\\u0000b":1}': "'a\\x00b': unknown key",
    '{"Network":"10.5.0.0/16","Backend":"udp"}': 'Backend: \'udp\' is not an object such as {"Type": "udp"}',
    '{"Network":"10.5.0.0/16","Backend":{}}': (
        "Backend.Type: missing (one of udp, vxlan, host-gw, wireguard, ipip, alloc, extension)"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"hostgw"}}': (
        "Backend.Type: 'hostgw' is not one of udp, vxlan, host-gw, wireguard, ipip, alloc, extension; did you mean host-gw?"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":70000}}': "Backend.Port: 70000 is not a UDP port (1..65535)",
    '{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":0}}': "Backend.Port: 0 is not a UDP port (1..65535)",
    '{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Prot":1}}': "Backend.Prot: unknown key; did you mean Port?",
    '{"Network":"10.5.0.0/16","Backend":{"Type":"udp","VNI":1}}': "Backend.VNI: unknown key",
    '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}': (
        "Backend.VNI: 16777216 is not a VXLAN network identifier (1..16777215)"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":67}}': (
        "Backend.MTU: 67 is not an MTU in bytes (68..65535, or 0 for the uplink's less the overhead)"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","Mode":"ipv5"}}': (
        "Backend.Mode: 'ipv5' is not one of separate, auto, ipv4, ipv6; did you mean ipv6?"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"c2VjcmV0"}}': (
        "Backend.PSK: not a WireGuard key (32 bytes in base64: 44 characters, as `wg genpsk` prints it)"
    ),
    '{"Network":"10.5.0.0/16","Backend":{"Type":"extension","PreStartupCommand":["a"]}}': (
        "Backend.PreStartupCommand: a list is not a text"
    ),
}


@pytest.mark.parametrize(("text", "problem"), ONE_PROBLEM.items())
def test_a_mistake_is_told_with_its_key_path_and_what_would_be_right(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_a_network_with_host_bits_does_not_hide_what_is_wrong_beside_it() -> None:
    assert problems('{"Network":"10.5.1.0/16","SubnetLen":31}') == [
        "Network: 10.5.1.0/16 has bits set after the prefix; 10.5.0.0/16 was probably meant",
        "SubnetLen: 31 leaves no room for a host (18..30)",
    ]


def test_all_mistakes_are_told_at_once() -> None:
    text = (
        '{"Network":"10.5.0.0/16","SubnetLn":3,"SubnetMin":"10.5.0.1","SubnetMax":"10.6.0.0","EnableNFTables":"yes",'
        '"Backend":{"type":"vxlan","Port":-1,"GBP":0,"port":2}}'
    )
    assert problems(text) == [
        "SubnetLn: unknown key; did you mean SubnetLen?",
        "EnableNFTables: 'yes' is neither true nor false",
        "Backend.Port: given twice",
        "Backend.Port: -1 is not a UDP port (1..65535, or 0 for the kernel's, 8472)",
        "Backend.GBP: 0 is neither true nor false",
        "SubnetMin: 10.5.0.1 is not the first address of a /24 (10.5.0.0 is)",
        "SubnetMax: 10.6.0.0 is not in 10.5.0.0/16",
    ]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"Network":' + b"9" * 9000 + b"}", b"a" * (2 << 20)]
)
def test_what_is_not_a_json_object_is_one_problem(text: bytes) -> None:
    (problem,) = problems(text)
    assert problem.startswith("network config: ") and len(problem) < 250


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid_and_explained(path: Path) -> None:
    parse_network_config(path.read_bytes())
    assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_rendered_config_parses_to_the_same(path: Path) -> None:
    config = parse_network_config(path.read_bytes())
    assert parse_network_config(render_network_config(config)) == config


def test_every_prefix_of_a_good_config_is_refused() -> None:
    text = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}'
    for length in range(len(text)):
        problems(text[:length])


@given(st.text() | st.binary())
def test_garbage_is_refused_and_never_raises_anything_else(text: str | bytes) -> None:
    problems(text)


KEYS = st.sampled_from(
    ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4", "EnableIPv6", "IPv6Network", "Backend", "Type", "Port", "x"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["10.5.0.0/16", "fd00::/48", "10.5.3.0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_json_is_refused_or_renders_to_the_same(value: dict[str, object]) -> None:
    try:
        config = parse_network_config(json.dumps(value))
    except ConfigError as error:
        assert error.problems and all(problem.isprintable() for problem in error.problems)
    else:
        assert parse_network_config(render_network_config(config)) == config
