"""The bundled plugin in a root directory that has nothing but a shell: no Python, no C library, no flanpy."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from flanpy.cni.install import install

pytestmark = pytest.mark.root

BUNDLE = Path("/opt/flanpy/cni")


@pytest.fixture(scope="module")
def bare_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with /bin/sh (busybox, linked statically) and the installed plugin."""
    root = tmp_path_factory.mktemp("host")
    (root / "bin").mkdir()
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin" / "sh")
    install(Path("/opt/cni/bin"), ("flanpy",), Path("/etc/cni/net.d"), bundle_dir=BUNDLE, root=root)
    return root


def ask(root: Path, command: str, stdin: str, **variables: str) -> tuple[int, dict[str, object]]:
    """One request to the plugin in that root."""
    done = subprocess.run(
        ["chroot", str(root), "/opt/cni/bin/flanpy"],
        input=stdin,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND": command, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_plugin_answers_where_nothing_is_installed(bare_root: Path) -> None:
    status, answer = ask(bare_root, "VERSION", '{"cniVersion": "1.0.0"}')

    assert (status, answer["cniVersion"]) == (0, "1.0.0")


def test_its_errors_are_those_of_the_plugin_proper(bare_root: Path) -> None:
    config = {"cniVersion": "1.0.0", "name": "cbr0", "type": "flanpy"}

    status, answer = ask(
        bare_root,
        "ADD",
        json.dumps(config),
        CNI_CONTAINERID="a1",
        CNI_NETNS="/var/run/netns/none",
        CNI_IFNAME="eth0",
        CNI_PATH="/opt/cni/bin",
    )

    assert (status, answer["code"]) == (1, 7)
    assert "bridge: no such plugin in CNI_PATH=/opt/cni/bin" in str(answer["msg"])


def test_the_conflist_lies_where_the_runtime_looks(bare_root: Path) -> None:
    assert json.loads((bare_root / "etc/cni/net.d/10-flanpy.conflist").read_text())["plugins"][0]["type"] == "flanpy"


def test_a_second_installation_replaces_the_first_and_leaves_nothing_else(bare_root: Path) -> None:
    (bare_root / BUNDLE.relative_to("/") / "stale").touch()

    install(Path("/opt/cni/bin"), ("flanpy",), bundle_dir=BUNDLE, root=bare_root)

    assert [path.name for path in (bare_root / "opt/flanpy").iterdir()] == ["cni"]
    assert not (bare_root / BUNDLE.relative_to("/") / "stale").exists()
    assert ask(bare_root, "VERSION", '{"cniVersion": "1.1.0"}')[0] == 0
