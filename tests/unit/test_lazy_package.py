"""A package whose modules can be imported without it (kernel/lazy_package.py), and what an agent so leaves away."""

import subprocess
import sys
from pathlib import Path

import pytest

LEFT_AWAY = (
    "pyroute2.ndb",
    "pyroute2.ipdb",
    "pyroute2.ethtool",
    "pyroute2.conntrack",
    "sqlite3",
    "http.server",
    "http.client",
    "tarfile",
    "zipfile",
)
AGENT = (
    "cli.agent",
    "agent.run",
    "stores.etcd",
    "datapath.process",
    "datapath.ebpf",
    "datapath.ebpf_probe",
    "kernel.bpf_host",
    "kernel.tun",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """``heavy``: its ``__init__`` prints, imports a module of its own by the package, and makes a name; ``part`` needs none of it."""
    made = tmp_path / "heavy"
    made.mkdir()
    (made / "__init__.py").write_text("print('loaded')\nfrom heavy.part import small\nlarge = small + 1\n__version__ = '7'\n")
    (made / "part.py").write_text("from heavy import other\nsmall = other.value\n")
    (made / "other.py").write_text("value = 41\n")
    (made / "broken.py").write_text("raise OSError('no')\n")
    return tmp_path


def said_by(package: Path, code: str) -> list[str]:
    begin = "from flanpy.kernel.lazy_package import make_lazy; make_lazy('heavy'); make_lazy('heavy')\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(package)!r})\n{begin}{code}"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("from heavy.part import small; print(small)", ["41"]),
        ("import heavy.part; from heavy import other; print(other.value, heavy.part.small)", ["41", "41"]),
        ("from heavy import large; print(large)", ["loaded", "42"]),
        ("import heavy; print(heavy.__version__, heavy.large)", ["loaded", "7", "42"]),
        ("import heavy.part; from heavy import *; print(large)", ["loaded", "42"]),
        ("import heavy; print(hasattr(heavy, '__wrapped__'), hasattr(heavy, 'nothing'))", ["loaded", "False", "False"]),
        ("import heavy, warnings; print(heavy.__name__, heavy.__path__[0][-5:])", ["heavy", "heavy"]),
    ],
)
def test_the_package_itself_is_loaded_when_something_of_it_is_asked_for(package: Path, code: str, said: list[str]) -> None:
    assert said_by(package, code) == said


def test_a_module_that_fails_fails_as_ever_and_a_package_that_is_missing_is_missing(package: Path) -> None:
    code = """
make_lazy("nowhere")
for name in ("heavy.broken", "heavy.gone", "nowhere"):
    try:
        __import__(name)
    except Exception as error:
        print(type(error).__name__)
"""
    assert said_by(package, code) == ["OSError", "ModuleNotFoundError", "ModuleNotFoundError"]


def test_a_package_that_has_been_imported_stays_as_it_is(package: Path) -> None:
    assert said_by(package, "import heavy.part\nprint(heavy.large)\nmake_lazy('heavy')\nprint(heavy.large)") == [
        "loaded",
        "42",
        "42",
    ]


def test_threads_that_ask_while_another_loads_wait_for_it(package: Path) -> None:
    (package / "heavy" / "__init__.py").write_text("import time\ntime.sleep(0.3)\nlarge = 42\n")
    code = """
import threading
found = []
def ask():
    from heavy import large
    found.append(large)
threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*found)
"""
    assert said_by(package, code) == ["42", "42", "42"]


def test_an_agent_does_not_load_what_it_does_not_use() -> None:
    """Each of these is resident in every agent for as long as it runs; pyroute2 is used, and its database is not."""
    imports = "".join(f"import flanpy.{name}\n" for name in AGENT)
    code = (
        f"{imports}import sys\nprint(*[name for name in {LEFT_AWAY} if name in sys.modules], 'pyroute2.iproute' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"]
