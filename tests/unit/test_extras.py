"""A host needs neither rich nor scapy: the agent's commands work without them, and `lab` and `bench` say what to install."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flanpy.cli.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rich", "scapy", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name in ("rich", "scapy", "matplotlib") else found(name, package)
importlib.util.find_spec = find_spec
from flanpy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""flanpy as it is where nothing of these is installed."""


def flanpy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BARE, *words], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "packages", "extra"),
    [
        (("lab", "up"), "packages rich, scapy", "lab"),
        (("lab", "demo"), "packages rich, scapy", "lab"),
        (("lab", "status"), "packages rich, scapy", "lab"),
        (("bench", "quick"), "package rich", "bench"),
        (("bench", "--list"), "package rich", "bench"),
    ],
)
def test_lab_and_bench_name_what_is_missing_before_they_begin(words: tuple[str, ...], packages: str, extra: str) -> None:
    done = flanpy(*words)
    said = f"not installed: the Python {packages}; pip install 'flanpy[{extra}]'"
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (9, True, False), done.stderr


def test_the_agent_and_its_tools_import_none_of_them() -> None:
    modules = [
        path.stem for path in (ROOT / "flanpy" / "cli").glob("*.py") if path.stem not in ("__init__", "main", "bench", "lab")
    ]
    code = f"import flanpy.agent.run, flanpy.stores.etcd, {', '.join(f'flanpy.cli.{name}' for name in modules)}, json, sys\n"
    code += "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules} & {'rich', 'scapy', 'matplotlib'})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra: {_name(each) for each in project["optional-dependencies"][extra]} for extra in EXTRAS}
    assert named == {"lab": {"rich", "scapy"}, "bench": {"rich", "matplotlib"}}
    assert {_name(each) for each in project["dependencies"]} & {"rich", "scapy", "matplotlib"} == set()


def _name(requirement: str) -> str:
    return requirement.split(">", maxsplit=1)[0]
