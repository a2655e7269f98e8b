"""The installed executable: what is in it, how little it imports, and that it answers in CNI's words whatever happens."""

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flanpy.cli.main import main
from flanpy.cni.install import CONFLIST_NAME, install, plugin_text
from flanpy.errors import PlatformError, UsageError

ROOT = Path(__file__).resolve().parents[2]
TOO_HEAVY = ("argparse", "logging", "pyroute2", "grpc", "google", "etcd3", "rich", "asyncio", "cffi", "tempfile", "site")
START_LIMIT_S = 0.150


def run(path: Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([path], input=stdin, env=environment, capture_output=True, check=False, timeout=30)


def test_the_executables_and_the_conflist_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--name", "flanpy", "--name", "flannel"]
    assert main(["cni", "install", "--bin-dir", str(tmp_path / "bin"), *names, "--conf-dir", str(tmp_path / "net.d")]) == 0
    written = [tmp_path / "bin/flanpy", tmp_path / "bin/flannel", tmp_path / "net.d" / CONFLIST_NAME]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [0o755, 0o755, 0o644]
    assert run(tmp_path / "bin/flannel", CNI_COMMAND="VERSION").returncode == 0
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == ["flannel", "flanpy"]


def test_what_was_written_is_told_as_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cni", "install", "--bin-dir", str(tmp_path), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(tmp_path / "flanpy")]}


def test_no_other_plugin_is_overwritten(tmp_path: Path) -> None:
    for name in ("bridge", "../flanpy"):
        with pytest.raises(UsageError, match="must be one of flanpy, flannel"):
            install(tmp_path, (name,))


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot be written"):
        install(tmp_path / "file")


def test_an_interpreter_with_blanks_and_quotes_in_its_path_is_found(tmp_path: Path) -> None:
    interpreter = tmp_path / 'py "th$on' / "python3"
    interpreter.parent.mkdir()
    interpreter.symlink_to(Path(sys.executable).resolve())
    plugin = tmp_path / "plugin"
    plugin.write_text(plugin_text(str(interpreter), str(ROOT)))
    plugin.chmod(0o755)
    done = run(plugin, CNI_COMMAND="VERSION")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"


def test_without_the_package_the_answer_is_still_a_cni_error(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(plugin_text(sys.executable, str(tmp_path / "gone")))
    plugin.chmod(0o755)
    done = run(plugin, CNI_COMMAND="VERSION")
    assert (done.returncode, done.stderr, json.loads(done.stdout)["code"]) == (1, b"", 5)
    assert "flanpy cni install" in json.loads(done.stdout)["msg"]


def test_the_environment_of_the_runtime_cannot_change_what_is_imported(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    assert run(tmp_path / "flanpy", CNI_COMMAND="VERSION", PYTHONPATH=str(tmp_path), PYTHONSTARTUP="x").returncode == 0


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import flanpy.cni.entry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-ISc", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & set(TOO_HEAVY)


def test_it_starts_and_answers_in_less_than_150_ms_of_cpu_time(tmp_path: Path) -> None:
    install(tmp_path)
    run(tmp_path / "flanpy", CNI_COMMAND="VERSION")  # compiles
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(tmp_path / "flanpy", CNI_COMMAND="VERSION")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < START_LIMIT_S


def test_a_defect_is_a_cni_error_with_its_place() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); from flanpy.cni import entry; entry.main(); 1 / 0"
    done = subprocess.run(
        [sys.executable, "-ISc", code, str(ROOT)],
        env={**os.environ, "CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, done.stderr, answer["code"]) == (1, b"", 999)
    assert answer["msg"] == "flanpy: a defect: ZeroDivisionError: division by zero"
    assert answer["details"] == "<string>:1"


def test_the_command_without_a_subcommand_is_the_plugin() -> None:
    argv = [sys.executable, "-m", "flanpy", "cni"]
    environment = {**os.environ, "CNI_COMMAND": "DEL", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr, json.loads(done.stdout)["code"]) == (1, b"", 6)
