"""What is given away: an sdist with all sources, the wheel that is built from it alone, and that wheel at work in a fresh environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
NOT_COPIED = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "*.o",
    "_core.c",
    "_native.c",
    "__pycache__",
    "bench-results",
    ".*_cache",
    ".hypothesis",
)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def run(argv: list[str | Path], cwd: Path, **extra: str) -> str:
    """The standard output of a command that must succeed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PATH"] = f"{environment.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    done = subprocess.run(argv, cwd=cwd, env={**environment, **extra}, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, f"{argv}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the tree without anything that was built."""
    place = tmp_path_factory.mktemp("sdist")
    shutil.copytree(TOP, place / "tree", ignore=shutil.ignore_patterns(*NOT_COPIED))
    name = run([sys.executable, "-c", BUILD, "build_sdist", place], place / "tree").splitlines()[-1]
    return place / name


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from what the sdist holds, and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (tree,) = place.iterdir()
    name = run([sys.executable, "-c", BUILD, "build_wheel", place], tree).splitlines()[-1]
    return place / name


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a new environment with the wheel; its dependencies are those of the environment that runs the tests."""
    place = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], place)
    python = place / "venv/bin/python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel], place)
    return place / "venv/bin"


def test_the_sdist_has_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = [path for folder in ("csrc", "config", "flanpy", "tests", "docs", "scripts") for path in (TOP / folder).rglob("*")]
    sources = {
        str(p.relative_to(TOP))
        for p in kept
        if p.suffix in (".c", ".h", ".py", ".toml", ".json", ".yaml", ".service", ".md", ".sh")
    }
    built = {name for name in sources if name.endswith(("_core.c", "_native.c"))}

    assert sorted(sources - built - names) == []
    assert {"Makefile", "README.md", "LICENSE", "ARCHITECTURE.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names


def test_the_wheel_is_for_every_python_from_3_11_on_and_has_both_datapaths(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert "-cp311-abi3-" in wheel.name
    assert "flanpy/datapath/_core.abi3.so" in names
    assert "flanpy/datapath/overlay.bpf.o" in names
    assert not [name for name in names if name.startswith(("tests/", "csrc/"))]


def test_its_commands_are_those_of_the_wheel_and_not_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    place = run([installed / "python", "-c", "import flanpy; print(flanpy.__file__)"], tmp_path).strip()

    assert place.startswith(str(installed.parent))
    assert run([installed / "flanpy", "--version"], tmp_path).startswith("flanpy ")


def test_the_cni_plugin_answers(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "flanpy-cni"],
        input='{"cniVersion": "1.0.0"}',
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1.0.0" in json.loads(done.stdout)["supportedVersions"]


@pytest.mark.root
def test_the_ebpf_datapath_loads_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    said = run([installed / "flanpy", "datapath", "probe"], tmp_path)

    assert said.splitlines()[-1] == "ebpf can run here"


@pytest.mark.root
def test_a_lab_of_the_wheel_carries_packets(installed: Path, tmp_path: Path) -> None:
    name = f"wheel{os.getpid()}"
    flanpy = installed / "flanpy"
    lab = [flanpy, "lab"]
    run([*lab, "up", "--lab", name, "--hosts", "2", "--pods", "1"], tmp_path)
    try:
        answer = run([*lab, "exec", "--lab", name, "host1-pod1", "--", "ping", "-c", "2", "-W", "2", "host2-pod1"], tmp_path)
    finally:
        run([*lab, "down", "--lab", name], tmp_path)

    assert " 0% packet loss" in answer
