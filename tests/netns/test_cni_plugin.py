"""Every command of the plugin on one host whose agent is away, with Debian's bridge and host-local as delegates.

    host1 ── cni0 (made by the bridge plugin) ──┬── pod
                                                └── pod …

One host serves all tests of this file; each has pods of its own names and leaves none.
"""

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.support.cni import SUBNET_ENV, Runtime, lone_host

SUBNET = ip_network("10.244.7.0/24")
GC_KEY = "cni.dev/valid-attachments"
MODERN = """#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}'
else
    echo "$CNI_COMMAND $CNI_CONTAINERID $(cat)" >>"$0.calls"
    [ ! -e "$0.broken" ] || { echo '{"code": 51, "msg": "no uplink", "details": "eth9 is down"}'; exit 1; }
fi
"""
"""A delegate that speaks 1.1.0, as Debian's do not: it writes down what it is asked."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with lone_host(tmp_path_factory.mktemp("cni")) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def nothing_is_left(host: Runtime) -> Iterator[None]:
    yield
    assert (host.addresses(), host.kept()) == ([], [])


@pytest.fixture
def modern(host: Runtime) -> Iterator[Path]:
    path = host.bin_dir / "modern"
    path.write_text(MODERN)
    path.chmod(0o755)
    yield path
    for name in ("modern", "modern.calls", "modern.broken"):
        (host.bin_dir / name).unlink(missing_ok=True)


def devices(host: Runtime) -> set[str]:
    return {link["ifname"] for link in json.loads(host.sandbox.run("host1", ["ip", "-j", "link"]).stdout)}


# ------------------------------------------------------------------------------------------------ ADD and DEL


def test_del_gives_the_address_back_and_takes_the_device_away(host: Runtime) -> None:
    before = devices(host) | {"cni0"}
    answer = host.add("gone")
    assert host.addresses() == [answer.address]
    assert host.kept() == ["id-gone"]
    assert host.path("cni", "id-gone").stat().st_mode & 0o777 == 0o600
    assert host.call("DEL", "gone").json is None
    assert devices(host) == before
    assert host.call("DEL", "gone").status == 0


def test_del_of_what_was_never_added_succeeds(host: Runtime) -> None:
    assert host.call("DEL", "never").status == 0


def test_del_succeeds_when_the_namespace_has_gone_and_when_it_is_not_named(host: Runtime) -> None:
    for pod, environment in (("lost1", {}), ("lost2", {"CNI_NETNS": ""})):
        host.add(pod)
        host.sandbox.script(f"ip netns delete {pod}")
        assert host.call("DEL", pod, **environment).status == 0


def test_del_needs_neither_subnet_env_nor_the_same_delegate_keys(host: Runtime) -> None:
    host.add("plain")
    assert host.call("DEL", "plain", config=host.config(subnetFile="/nonexistent", delegate={"type": "macvlan"})).status == 0


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_answer_is_in_the_version_of_the_config(host: Runtime, version: str) -> None:
    answer = host.add(f"v{version}", cniVersion=version)
    assert answer.json["cniVersion"] == version
    assert ip_address(answer.address) in SUBNET
    if version != "0.3.1":
        config = host.config(cniVersion=version, prevResult=answer.json)
        assert host.call("CHECK", f"v{version}", config=config).json is None
    assert host.call("DEL", f"v{version}", config=host.config(cniVersion=version)).status == 0


def test_a_config_of_flannel_s_type_without_a_version_works(host: Runtime) -> None:
    config = {key: value for key, value in host.config(type="flannel").items() if key != "cniVersion"}
    host.new_namespace("old")
    answer = host.call("ADD", "old", config=config)
    assert ip_address(answer.json["ip4"]["ip"].split("/")[0]) in SUBNET
    assert host.call("DEL", "old", config=config).status == 0


def test_a_pod_that_flannel_s_plugin_has_attached_is_detached(host: Runtime) -> None:
    host.add("theirs")
    path = host.path("cni", "id-theirs")
    kept = json.loads(path.read_text())
    del kept["flanpy"]
    path.write_text(json.dumps(kept))
    assert host.call("DEL", "theirs").status == 0


def test_add_again_gives_the_same_answer(host: Runtime) -> None:
    first = host.add("twice")
    assert host.call("ADD", "twice") == first
    assert host.addresses() == [first.address]
    assert host.call("DEL", "twice").status == 0


def test_add_again_repairs_what_is_broken(host: Runtime) -> None:
    host.add("broken")
    host.sandbox.script("ip -n broken link delete eth0")
    again = host.call("ADD", "broken")
    assert host.addresses() == [again.address]
    assert host.call("CHECK", "broken").status == 0
    assert host.call("DEL", "broken").status == 0


def test_add_after_one_that_was_killed_half_way_leaves_one_address(host: Runtime) -> None:
    host.add("half")
    path = host.path("cni", "id-half")
    kept = json.loads(path.read_text())
    kept["flanpy"]["result"] = None
    path.write_text(json.dumps(kept))
    again = host.call("ADD", "half")
    assert host.addresses() == [again.address]
    assert host.call("DEL", "half").status == 0


def test_an_add_that_fails_keeps_nothing(host: Runtime) -> None:
    answer = host.call("ADD", "nowhere")
    assert (answer.status, answer.json["msg"][:13]) == (1, "bridge: ADD: ")
    assert (host.addresses(), host.kept()) == ([], [])


def test_twenty_adds_at_once_get_twenty_addresses(host: Runtime) -> None:
    pods = [f"many{number}" for number in range(20)]
    for pod in pods:
        host.new_namespace(pod)
    answers = [call.collect() for call in [host.start("ADD", pod) for pod in pods]]
    assert len({answer.address for answer in answers}) == 20
    assert sorted(answer.address for answer in answers) == host.addresses()
    assert [call.collect().status for call in [host.start("DEL", pod) for pod in pods]] == [0] * 20


def test_two_interfaces_of_one_pod_come_and_go_apart(host: Runtime) -> None:
    host.add("pair")
    other = host.config(name="second", delegate={"bridge": "cni1"})
    assert host.call("ADD", "pair", config=other, CNI_IFNAME="net1").status == 0
    assert host.kept() == ["id-pair", "id-pair@net1"]
    assert host.call("DEL", "pair", config=other, CNI_IFNAME="net1").status == 0
    assert host.call("CHECK", "pair").status == 0
    assert host.call("DEL", "pair").status == 0


def test_dual_stack_pods_get_an_address_of_each_family(host: Runtime) -> None:
    text = SUBNET_ENV + "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\n"
    host.path("dual.env").write_text(text)
    config = host.config(subnetFile="/run/lab/host1/dual.env", name="dual", delegate={"bridge": "cni6"})
    for pod in ("six1", "six2"):
        host.new_namespace(pod)
    answers = [call.collect() for call in [host.start("ADD", pod, config=config) for pod in ("six1", "six2")]]
    addresses = [[item["address"].split("/")[0] for item in answer.json["ips"]] for answer in answers]
    assert {ip_address(address) in ip_network("fd00:5:0:7::/64") for _, address in addresses} == {True}
    assert host.call("CHECK", "six1", config=config).json is None
    host.sandbox.run("six1", ["ping", "-n", "-c1", "-W2", addresses[1][1]])
    assert [host.call("DEL", pod, config=config).status for pod in ("six1", "six2")] == [0, 0]


# ------------------------------------------------------------------------------------------------ CHECK


@pytest.mark.parametrize(
    "damage",
    [
        "ip -n hurt route delete 10.244.0.0/16",
        "ip -n hurt route delete default",
        "ip -n hurt address flush dev eth0",
        "ip -n hurt link delete eth0",
    ],
)
def test_check_notices_what_somebody_has_removed(host: Runtime, damage: str) -> None:
    answer = host.add("hurt")
    config = host.config(prevResult=answer.json)
    try:
        assert host.call("CHECK", "hurt", config=config).json is None
        host.sandbox.script(damage)
        checked = host.call("CHECK", "hurt", config=config)
        assert (checked.status, checked.json["msg"][:15]) == (1, "bridge: CHECK: ")
    finally:
        host.call("DEL", "hurt")
        host.sandbox.script("ip netns delete hurt")


def test_check_of_an_unknown_pod_is_code_3(host: Runtime) -> None:
    assert "was it added?" in host.call("CHECK", "stranger").refused(3)


# ------------------------------------------------------------------------------------------------ GC, STATUS, VERSION


def gc(host: Runtime, *valid: str, **keys: Any) -> dict[str, Any]:
    listed = [{"containerID": f"id-{pod}", "ifname": "eth0"} for pod in valid]
    return host.config(cniVersion="1.1.0", **{GC_KEY: listed, **keys})


def test_gc_detaches_what_is_not_listed_and_nothing_else(host: Runtime) -> None:
    stay = host.add("stay")
    host.add("stale")
    other = host.config(name="elsewhere", delegate={"bridge": "cni2"})
    host.add("foreign", **other)
    done = host.call("GC", config=gc(host, "stay"))
    assert (done.status, done.json) == (0, None)
    assert host.kept() == ["id-foreign", "id-stay"]
    assert host.addresses() == [stay.address]
    assert host.call("CHECK", "stay").status == 0
    assert host.call("GC", config=gc(host)).status == 0
    assert host.call("DEL", "foreign", config=other).status == 0


def test_gc_without_a_list_removes_nothing(host: Runtime) -> None:
    host.add("safe")
    for listed in (None, [{"containerID": "id-safe"}]):
        assert GC_KEY in host.call("GC", config=gc(host, **{GC_KEY: listed})).refused(7)
    assert host.kept() == ["id-safe"]
    assert host.call("DEL", "safe").status == 0


def test_gc_and_status_reach_a_delegate_that_knows_them(host: Runtime, modern: Path) -> None:
    keys: dict[str, Any] = {"delegate": {"type": "modern"}, "ipam": {"type": "modern"}}
    assert host.call("STATUS", config=host.config(cniVersion="1.1.0", **keys)).status == 0
    assert host.call("GC", config=gc(host, "a", **keys)).status == 0
    status, collected = (line.split(" ", 2) for line in (modern.parent / "modern.calls").read_text().splitlines())
    assert (status[0], collected[0]) == ("STATUS", "GC")
    config = json.loads(collected[2])
    assert config[GC_KEY] == [{"containerID": "id-a", "ifname": "eth0"}]
    assert (config["cniVersion"], config["ipam"]["ranges"]) == ("1.1.0", [[{"subnet": "10.244.7.0/24"}]])
    (modern.parent / "modern.broken").write_text("")
    answer = host.call("STATUS", config=host.config(cniVersion="1.1.0", **keys))
    assert answer.json == {"cniVersion": "1.1.0", "code": 51, "msg": "modern: STATUS: no uplink", "details": "eth9 is down"}


def test_status_is_ready_when_subnet_env_and_the_plugins_are_there(host: Runtime) -> None:
    assert host.call("STATUS", config=host.config(cniVersion="1.1.0")).json is None


def test_status_without_subnet_env_is_code_50_with_the_cure(host: Runtime) -> None:
    answer = host.call("STATUS", config=host.config(cniVersion="1.1.0", subnetFile="/run/flannel/none"))
    assert answer.json["cniVersion"] == "1.1.0"
    assert "start `flanpy agent`" in answer.refused(50)


def test_status_without_the_delegate_is_code_50(host: Runtime) -> None:
    message = host.call("STATUS", config=host.config(cniVersion="1.1.0", delegate={"type": "bridges"})).refused(50)
    assert "bridges: no such plugin in CNI_PATH=" in message


def test_add_before_the_agent_is_ready_says_try_again(host: Runtime) -> None:
    host.new_namespace("early")
    assert "start `flanpy agent`" in host.call("ADD", "early", config=host.config(subnetFile="/run/flannel/none")).refused(11)


def test_version_is_answered_by_every_way_in(host: Runtime) -> None:
    expected = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    assert host.call("VERSION", config="{}").json == {"cniVersion": "1.1.0", "supportedVersions": expected}
    done = subprocess.run([host.bin_dir / "flannel"], env={"CNI_COMMAND": "VERSION"}, input=b"", capture_output=True, check=True)
    assert json.loads(done.stdout)["supportedVersions"] == expected


# ------------------------------------------------------------------------------------------------ hostile


def test_the_host_s_own_namespace_is_no_pod(host: Runtime) -> None:
    before = devices(host)
    assert "own network namespace" in host.call("ADD", "self", CNI_NETNS="/proc/self/ns/net").refused(8)
    assert devices(host) == before


def test_del_never_enters_the_host_s_own_namespace(host: Runtime) -> None:
    host.add("moved")
    host.sandbox.script("ip -n host1 link add eth0 type bridge")
    assert host.call("DEL", "moved", CNI_NETNS="/run/netns/host1").status == 0
    assert "eth0" in devices(host)
    host.sandbox.script("ip -n host1 link delete eth0; ip netns delete moved")


@pytest.mark.parametrize("container_id", ["../../../etc/x", "..", "a" * 300])
def test_a_container_id_that_is_a_path_is_refused(host: Runtime, container_id: str) -> None:
    assert "CNI_CONTAINERID" in host.call("DEL", "x", CNI_CONTAINERID=container_id).refused(4)


@pytest.mark.parametrize("stdin", ["", "{", "[" * 200_000])
def test_what_is_no_config_is_refused(host: Runtime, stdin: str) -> None:
    host.call("ADD", "x", config=stdin).refused(6)


def test_an_endless_config_is_refused_early(host: Runtime) -> None:
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "x", "CNI_IFNAME": "eth0", "CNI_NETNS": "/n", "CNI_PATH": "/p"}
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run(
            [host.bin_dir / "flanpy"], env=environment, stdin=zeros, capture_output=True, timeout=20, check=False
        )
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 6, b"")


@pytest.mark.parametrize("plugin", ["../../bin/sh", "flannel"])
def test_a_delegate_that_is_no_plugin_of_cni_path_is_never_started(host: Runtime, plugin: str) -> None:
    host.call("ADD", "x", config=host.config(delegate={"type": plugin})).refused(7)


@pytest.mark.parametrize(
    "body", ["exit 3", "kill -9 $$", "echo text; exit 1", "echo text", "echo '{\"msg\": 5}'; exit 1", "echo '[]'"]
)
def test_a_delegate_without_manners_is_a_cni_error(host: Runtime, modern: Path, body: str) -> None:
    modern.write_text(f'#!/bin/sh\n[ "$CNI_COMMAND" != DEL ] || exit 0\n{body}\n')
    answer = host.call("ADD", "x", config=host.config(delegate={"type": "modern"}))
    answer.refused(6 if body in ("echo text", "echo '[]'") else 100)


def test_a_directory_that_cannot_be_written_is_said(host: Runtime) -> None:
    assert "make dataDir writable" in host.call("ADD", "x", config=host.config(dataDir="/proc/nothing")).refused(5)
