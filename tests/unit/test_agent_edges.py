"""The loop's edges, each with a real socket or file: control socket, health server, log forms, lock, node id, sd_notify."""

import contextlib
import fcntl
import io
import json
import logging
import os
import resource
import select
import socket
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanpy.agent import control, files, health
from flanpy.agent.events import Ask, EventQueue
from flanpy.agent.health import HealthServer
from flanpy.agent.logs import JsonFormatter, TextFormatter, event
from flanpy.agent.notify import notify
from flanpy.errors import FlanpyError, PlatformError, ResourceBusy
from tests.support.edges import answering_loop


@pytest.fixture
def loop() -> Iterator[EventQueue]:
    """A loop that answers every Ask with its own command, until the test ends."""

    def answer(item: Ask) -> dict[str, Any]:
        alive = item.command == "health"
        return {"ok": item.command != "no", "error": "as asked", "command": item.command, "alive": alive, "ready": False}

    with answering_loop(answer) as events:
        yield events


@pytest.fixture
def server(loop: EventQueue, tmp_path: Path) -> Iterator[Path]:
    running = control.ControlServer(tmp_path, loop)
    running.start()
    yield tmp_path
    running.close()


def raw(run_dir: Path, data: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(run_dir / control.SOCKET_NAME))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer: dict[str, Any] = json.loads(client.makefile().read())
        return answer


def test_a_command_is_answered_by_the_loop(server: Path) -> None:
    assert control.ask(server, "status")["command"] == "status"


def test_a_refusal_becomes_an_error_with_its_reason(server: Path) -> None:
    with pytest.raises(FlanpyError, match="as asked"):
        control.ask(server, "no")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{", b"[]\n", b'{"command": 1}\n', b"\xff\xfe\n", b"[" * 10000 + b"\n"], ids=range(7)
)
def test_a_malformed_request_is_refused_and_the_next_one_served(server: Path, data: bytes) -> None:
    assert raw(server, data)["ok"] is False
    assert control.ask(server, "status")["ok"]


def test_a_request_that_is_too_long_is_refused(server: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        # The server stops reading and closes: depending on timing the client sees the refusal cut short or a reset.
        assert raw(server, b"x" * (1 << 20))["ok"] is False
        raise ValueError("refused")
    assert control.ask(server, "status")["ok"]


def test_silent_clients_do_not_keep_others_out(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENT_TIMEOUT_S", 60)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(3 * control.CLIENTS_MAX)]
    try:
        for client in silent:
            client.connect(str(server / control.SOCKET_NAME))
        started = time.monotonic()
        for _ in range(3):
            assert control.ask(server, "status")["ok"]
        assert time.monotonic() - started < 20, "the longest silent one went at once"
        first, last = silent[0], silent[-1]
        assert select.select([first], [], [], 5)[0] == [first]
        assert (first.recv(1), select.select([last], [], [], 0)[0]) == (b"", [])
    finally:
        for client in silent:
            client.close()


def test_a_client_that_finds_all_waiting_for_a_loop_that_hangs_is_told_so(tmp_path: Path) -> None:
    events: EventQueue = SimpleQueue()
    running = control.ControlServer(tmp_path, events)
    running.start()
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(control.CLIENTS_MAX)]
    asked: list[Any] = []
    try:
        for client in waiting:
            client.connect(str(tmp_path / control.SOCKET_NAME))
            client.sendall(b'{"command": "status"}\n')
            asked.append(events.get(timeout=5))
        with pytest.raises(FlanpyError, match="busy: 16 others wait for an answer"):
            control.ask(tmp_path, "status")
        for each in asked:
            each.reply.put({"ok": True})
        for client in waiting:
            client.settimeout(5)
            assert json.loads(client.recv(100)) == {"ok": True}, "nobody was sent away for it"
    finally:
        for client in waiting:
            client.close()
        running.close()


def test_a_request_that_drips_is_given_up_in_time_and_its_place_is_free_again(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENT_TIMEOUT_S", 0.3)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server / control.SOCKET_NAME))
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - started < 5:
                client.sendall(b" ")
                if client in select.select([client], [], [], 0.05)[0]:
                    break  # the server has ended it
        assert time.monotonic() - started < 2
    assert control.ask(server, "status")["ok"]


@pytest.mark.root
def test_another_user_is_refused_though_the_file_lets_it_in(loop: EventQueue) -> None:
    """SO_PEERCRED: somebody has opened the permissions of directory and socket."""
    ask = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'{}\\n'); print(s.makefile().read())"
    with tempfile.TemporaryDirectory() as directory:
        running = control.ControlServer(Path(directory), loop)
        running.start()
        try:
            Path(directory).chmod(0o711)
            path = Path(directory) / control.SOCKET_NAME
            path.chmod(0o666)
            argv = ["/usr/bin/python3", "-I", "-S", "-c", ask, str(path)]
            as_nobody = {"user": 65534, "group": 65534, "extra_groups": []}
            done = subprocess.run(argv, **as_nobody, capture_output=True, text=True, timeout=20, check=False)
        finally:
            running.close()
    assert json.loads(done.stdout or "{}") == {"ok": False, "error": "only root and the agent's user may ask"}, done.stderr


REQUESTS = st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["command", "arguments", "level"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode() + b"\n")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS)
def test_whatever_is_asked_is_answered_by_one_object(server: Path, data: bytes) -> None:
    assert isinstance(raw(server, data)["ok"], bool)


def test_the_socket_is_for_its_owner_only_and_goes_with_the_server(loop: EventQueue, tmp_path: Path) -> None:
    running = control.ControlServer(tmp_path, loop)
    assert (tmp_path / control.SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    running.close()
    assert not (tmp_path / control.SOCKET_NAME).exists()


def test_without_an_agent_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(FlanpyError, match=r"no agent answers at .*is `flanpy agent` running here\?"):
        control.ask(tmp_path, "status")


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 503), ("/", 404)])
def test_the_health_server_speaks_by_status(loop: EventQueue, path: str, status: int) -> None:
    server = HealthServer("127.0.0.1", 0, loop)
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as response:
            assert response.status == status
    except urllib.error.HTTPError as error:
        assert error.code == status
    finally:
        server.close()


def test_a_health_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ResourceBusy, match="--healthz-port: cannot listen on 127.0.0.1"):
            HealthServer("127.0.0.1", other.getsockname()[1], SimpleQueue())


def line(formatter: logging.Formatter) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("flanpy.test")
    logger.addHandler(handler)
    logger.warning("lost %s\n\x1b[31m", "10.5.1.0/24", extra=event("lease_lost", subnet="10.5.1.0/24"))
    return stream.getvalue()


def test_json_logs_carry_the_event_and_its_fields() -> None:
    parsed = json.loads(line(JsonFormatter()))
    assert {key: parsed[key] for key in ("level", "event", "subnet")} == {
        "level": "warning",
        "event": "lease_lost",
        "subnet": "10.5.1.0/24",
    }


def test_a_text_log_is_one_line_whatever_the_message_holds() -> None:
    text = line(TextFormatter())
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "warning lease_lost: lost 10.5.1.0/24" in text


def test_a_second_agent_in_one_run_directory_is_refused_by_name(tmp_path: Path) -> None:
    with files.exclusive(tmp_path), pytest.raises(ResourceBusy, match=r"another flanpy agent runs here \(process \d+"):
        with files.exclusive(tmp_path):
            pass
    with files.exclusive(tmp_path):
        pass


def test_the_node_id_is_made_once_and_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    first = files.node_id(tmp_path)
    assert files.node_id(tmp_path) == first
    (tmp_path / files.NODE_ID_FILE).write_text("\0garbage")
    second = files.node_id(tmp_path)
    assert second != first
    assert files.node_id(tmp_path) == second


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "subnet.env"
    files.write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(target, "new\ud800")
    assert (target.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["subnet.env"])


def test_notify_reaches_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify(READY="1", STATUS="subnet 10.5.1.0/24")
        assert manager.recv(1000) == b"READY=1\nSTATUS=subnet 10.5.1.0/24"


def test_notify_without_a_manager_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/socket")
    notify(READY="1")


def test_a_message_has_a_bounded_length() -> None:
    stream = io.StringIO()
    logger = logging.Logger("flanpy.test")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logger.addHandler(handler)
    logger.warning("lease %s refused", "K" * 400_000)
    assert len(stream.getvalue()) < 2200


def test_a_lock_that_is_a_link_or_a_pipe_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for make in (lambda path: path.symlink_to(precious), os.mkfifo):
        make(tmp_path / files.LOCK_FILE)
        with pytest.raises(PlatformError, match="--run-dir: "), files.exclusive(tmp_path):
            pass
        (tmp_path / files.LOCK_FILE).unlink()
    assert precious.read_text() == "precious"


def test_a_lock_that_a_cleanup_removes_right_before_it_is_ours_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / files.LOCK_FILE, fcntl.flock

    def removed_before(handle: int, operation: int) -> None:
        monkeypatch.undo()
        path.unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with files.exclusive(tmp_path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(ResourceBusy), files.exclusive(tmp_path):
            pass


def test_a_pipe_or_a_huge_file_in_place_of_a_text_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_bytes(b"x" * (files.TEXT_BYTES_MAX + 1))
    assert [files.read_text(tmp_path / name) for name in ("pipe", "huge", "absent")] == [None, None, None]


def test_the_control_socket_outlives_a_lack_of_descriptors(server: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            client.connect(str(server / control.SOCKET_NAME))
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert control.ask(server, "status")["ok"]


def test_clients_that_break_off_leave_no_traceback(loop: EventQueue, capsys: pytest.CaptureFixture[str]) -> None:
    server = HealthServer("127.0.0.1", 0, loop)
    server.start()
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as response:
            assert response.status == 200
    finally:
        server.close()
    assert "Traceback" not in capsys.readouterr().err


def test_clients_that_send_a_byte_now_and_then_are_let_go_all_the_same(loop: EventQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte would begin the wait anew; the whole request has its time, so that slow clients cannot keep every place."""
    monkeypatch.setattr(health, "REQUEST_S", 0.5)
    server = HealthServer("127.0.0.1", 0, loop)
    server.start()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(health.CLIENTS_MAX)]
    try:
        deadline = time.monotonic() + 10
        while slow:
            assert time.monotonic() < deadline, f"{len(slow)} slow clients are still served"
            time.sleep(0.1)
            for client in list(slow):
                try:
                    client.sendall(b"G")
                except OSError:
                    client.close()
                    slow.remove(client)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as response:
            assert response.status == 200
    finally:
        for client in slow:
            client.close()
        server.close()
