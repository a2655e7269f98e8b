"""What installs flanpy elsewhere: the Kubernetes manifests pass the API's schema and our own parsers, the Dockerfile names what exists."""

from __future__ import annotations

import argparse
import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flanpy.cli.main import parse
from flanpy.config.network import parse_network_config
from flanpy.config.options import add_agent_flags, load_agent_options

TOP = Path(__file__).resolve().parents[2]
MANIFESTS = list(yaml.safe_load_all((TOP / "config/kubernetes/flanpy.yaml").read_text(encoding="utf-8")))
DOCKERFILE = (TOP / "Dockerfile").read_text(encoding="utf-8")
OLDEST = "1.28"
"""Of the versions of Kubernetes that the manifests are held against, with the latest that the schemas know."""


def one(kind: str, name: str) -> dict[str, Any]:
    """The manifest of that kind and name."""
    (found,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found  # type: ignore[no-any-return]


def pod_specs() -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in MANIFESTS if each["kind"] in ("DaemonSet", "Job")]


def containers() -> list[dict[str, Any]]:
    return [each for spec in pod_specs() for each in [*spec.get("initContainers", []), *spec["containers"]]]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_each_manifest_passes_the_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_check_refuses_what_is_wrong() -> None:
    broken = copy.deepcopy(one("DaemonSet", "flanpy"))
    broken["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_agents_options_and_the_network_config_are_taken_by_the_agent(tmp_path: Path) -> None:
    data = one("ConfigMap", "flanpy")["data"]
    (tmp_path / "agent.toml").write_text(data["agent.toml"])
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)

    options = load_agent_options(
        parser.parse_args(["--config", str(tmp_path / "agent.toml")]), one("ConfigMap", "flanpy-etcd")["data"]
    )

    assert options.etcd_endpoints == ("http://10.0.0.1:2379",)
    assert (options.healthz_port, options.ip_masq) == (8471, True)
    assert parse_network_config(data["network.json"].encode()).backend.type == "udp"


def test_probes_ask_where_the_agent_listens() -> None:
    toml = one("ConfigMap", "flanpy")["data"]["agent.toml"]
    (agent,) = one("DaemonSet", "flanpy")["spec"]["template"]["spec"]["containers"]
    probes = [agent[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]

    assert {(probe["host"], probe["port"]) for probe in probes} == {("127.0.0.1", 8471)}
    assert 'healthz-ip = "127.0.0.1"' in toml
    assert "healthz-port = 8471" in toml
    assert [probe["path"] for probe in probes] == ["/healthz", "/healthz", "/readyz"]


@pytest.mark.parametrize("container", containers(), ids=lambda each: str(each["name"]))
def test_each_command_is_one_that_flanpy_knows(container: dict[str, Any]) -> None:
    program, *arguments = container["command"]

    assert program == "flanpy"
    parse(arguments)


def test_every_mount_has_its_volume_and_every_volume_a_mount() -> None:
    for spec in pod_specs():
        mounted = {
            mount["name"] for each in [*spec.get("initContainers", []), *spec["containers"]] for mount in each["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_references_between_the_manifests_lead_somewhere() -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in MANIFESTS}
    for spec in pod_specs():
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        assert {("ConfigMap", v["configMap"]["name"]) for v in spec["volumes"] if "configMap" in v} <= names
    for each in containers():
        assert {
            ("ConfigMap", source["configMapRef"]["name"]) for source in each.get("envFrom", []) if "configMapRef" in source
        } <= names


def test_all_run_one_image_of_this_version() -> None:
    from flanpy import __version__

    assert {each["image"] for each in containers()} == {f"flanpy:{__version__}"}


def test_the_agent_finds_what_the_plugin_keeps_on_the_host() -> None:
    spec = one("DaemonSet", "flanpy")["spec"]["template"]["spec"]
    (agent,) = spec["containers"]
    names = {mount["mountPath"]: mount["name"] for mount in agent["volumeMounts"]}
    places = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    parser = argparse.ArgumentParser()
    add_agent_flags(parser)
    options = load_agent_options(parser.parse_args([]), {})
    for path in (options.cni_data_dir, options.run_dir, options.state_dir):
        assert places[names[str(path)]] == str(path)


def test_the_plugin_is_installed_below_the_mounts_of_the_host() -> None:
    (install,) = one("DaemonSet", "flanpy")["spec"]["template"]["spec"]["initContainers"]
    arguments = parse(install["command"][1:])
    mounts = [Path(mount["mountPath"]) for mount in install["volumeMounts"]]
    for path in (arguments.bundle, arguments.bin_dir, arguments.conf_dir):
        below = arguments.root / path.relative_to("/")
        assert any(below.is_relative_to(mount) for mount in mounts), below


# ---------------------------------------------------------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_has_only_instructions_that_exist_and_begins_with_an_image() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= known
    assert instructions()[0][0] == "FROM"


def test_what_is_copied_into_the_image_exists_and_is_enough_to_build() -> None:
    copied = {word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in shlex.split(rest)[:-1]}
    assert [word for word in sorted(copied) if not (TOP / word).exists()] == []
    assert {"pyproject.toml", "setup.py", "csrc", "flanpy", "README.md"} <= copied


def test_stages_that_are_copied_from_are_defined() -> None:
    stages = {rest.split()[-1] for name, rest in instructions() if name == "FROM" and " AS " in rest}
    used = {match[1] for name, rest in instructions() if name == "COPY" and (match := re.search(r"--from=(\S+)", rest))}
    assert used <= stages
    assert used


def test_the_image_starts_the_agent() -> None:
    last = dict(instructions())
    parse([*json.loads(last["ENTRYPOINT"])[1:], *json.loads(last["CMD"])])


def test_the_documents_name_the_image_as_the_manifests_do() -> None:
    image = containers()[0]["image"]
    assert f"docker build -t {image} ." in DOCKERFILE
