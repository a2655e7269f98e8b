"""What the operator's commands print and with which status they end: whole texts from whole answers, no agent, one that misbehaves."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy.agent.cluster_map import Node, Target
from flanpy.agent.control import SOCKET_NAME, ask
from flanpy.agent.host_checks import Check
from flanpy.agent.overlay_ping import Plan
from flanpy.agent.peer_traffic import Traffic, as_json
from flanpy.agent.trace import HERE, Step
from flanpy.cli import doctor, leases, left, main, peers, ping, routes, status, top
from flanpy.cli.output import Paint, ask_agent, duration, printable, size, table
from flanpy.core.codec import encode_attributes
from flanpy.datapath import process_launch
from flanpy.errors import AgentAbsent
from flanpy.model import ROUTE_PROTOCOL, FlanpyInfo, NodeAttributes, Record, RecordSet
from tests.support.answers import STATUS

PLAIN = Paint(False)
ASKING = ("status", "peers", "routes", "top", "log-level")
PATH = {"state": "lossy", "rtt_ms": 0.416, "last_seen_s_ago": 3.2, "loss": 0.05, "sent": 40, "lost": 2}
SLOW = {"dataclasses", "inspect", "difflib", "shutil", "lzma", "logging", "subprocess", "textwrap", "asyncio"}
"""What a command that only asks and prints does without: it would take longer to import than all the rest."""
HEAVY = {"grpc", "pyroute2", "scapy", "etcd3", "rich", "google", "cffi"}


# ------------------------------------------------------------------------------------------------ whole texts


def test_status_is_one_screen() -> None:
    assert status.render(STATUS, PLAIN) == [
        "flanpy    0.1.0, ready, for 2 h 14 min",
        "lease     10.244.7.0/24, 23 h 12 min left",
        "network   10.244.0.0/16, backend udp, port 8285",
        "datapath  userspace (asked for)",
        "process   4243, adopted by this agent, started anew 2 ×",
        "peers     3, 1 kept without a lease, 1 foreign, 1 refused, table 12",
        "device    flannel0, MTU 1472",
        "uplink    eth0 172.31.9.1, MTU 1500",
        "rules     masquerade off, forward by iptables",
        "paths     1 node down, 1 ok, round trip at most 0.41 ms",
        "etcd      ok, last heard of 0.5 s ago",
        "sent      1,204 packets, 1.5 MB",
        "received  1,100 packets, 1.4 MB",
        "dropped   spoofed 7, no_route 3",
        "problems",
        r" - lease subnets/\x1b[31m refused: key: not of the form subnets/10.5.52.0-24",
        "warnings",
        " - no UDP GRO: the kernel has none",
    ]


def test_status_of_an_agent_that_has_just_started_says_what_is_missing() -> None:
    fresh = {
        **STATUS,
        **{
            "state": "not ready",
            "lease": None,
            "network": None,
            "datapath": None,
            "devices": [],
            "mtu_bytes": None,
            "warnings": [],
            "rules": None,
            "paths": None,
        },
        "counts": {"peers": 0, "kept": 0, "foreign": 0, "refused": 0},
        "etcd": {"state": "degraded", "problem": "no answer", "last_word_s_ago": None},
        "problems": [f"problem {number}" for number in range(12)],
    }
    assert status.render(fresh, PLAIN) == [
        "flanpy    0.1.0, not ready, for 2 h 14 min",
        "lease     none yet",
        "network   not known yet",
        "datapath  none yet",
        "peers     0",
        "device    none",
        "uplink    eth0 172.31.9.1, MTU 1500",
        "etcd      degraded, never heard of",
        "problems",
        *(f" - problem {number}" for number in range(10)),
        " - and 2 more",
    ]


def test_peers_are_listed_with_what_is_not_used_and_why() -> None:
    answer = {
        "peers": [
            {"node": "n2", "public_ip": "172.31.9.2", "backend": "udp", "features": ["ecn"]}
            | {"subnets": "10.244.8.0/24", "hop": "172.31.9.2:8285", "grace": None, "path": PATH}
            | {"traffic": as_json(Traffic(1204, 1_500_000, 1100, 1_400_000, 2, 1))},
            {"node": None, "public_ip": "172.31.9.3", "backend": "udp", "features": []}
            | {"subnets": "10.244.200.0/24", "hop": "172.31.9.3:8285", "grace": None, "path": None},
        ],
        "foreign": [{"subnets": "10.244.9.0/24", "public_ip": "172.31.9.4", "reason": "its backend is vxlan, ours is udp"}],
        "refused": [{"key": "subnets/\n\x07", "reason": "key: not of the form"}],
    }
    assert peers.render(answer, PLAIN) == [
        "SUBNET           ENDPOINT         BACKEND  PATH          RTT  LAST SEEN  "
        + "            SENT          RECEIVED  DROPS  NODE  FEATURES",
        "10.244.8.0/24    172.31.9.2:8285  udp      lossy 5%  0.42 ms  3 s ago    1.5 MB / 1,204 p  1.4 MB / 1,100 p      3  n2    ecn",
        "10.244.200.0/24  172.31.9.3:8285  udp      -               -  -                         -                 -      -  -     -",
        "",
        "FOREIGN        PUBLIC IP   NOT USED BECAUSE",
        "10.244.9.0/24  172.31.9.4  its backend is vxlan, ours is udp",
        "",
        "refused",
        r"  subnets/ \x07: key: not of the form",
    ]


def test_peers_that_are_kept_without_a_lease_show_for_how_long() -> None:
    node = {"node": "n2", "public_ip": "172.31.9.2", "backend": "udp", "features": []}
    kept = {"subnets": "10.244.8.0/24", "hop": "172.31.9.2:8285", "grace": {"cause": "lost", "seconds_left": 59.2}, "path": None}
    living = {"subnets": "10.244.9.0/24", "hop": "172.31.9.3:8285", "grace": None, "path": None}
    assert peers.render({"peers": [node | kept, node | living], "foreign": [], "refused": []}, PLAIN) == [
        "SUBNET         ENDPOINT         BACKEND  PATH  RTT  LAST SEEN  SENT  RECEIVED  DROPS  NODE  FEATURES  GRACE",
        "10.244.8.0/24  172.31.9.2:8285  udp      -       -  -             -         -      -  n2    -         59 s (lost)",
        "10.244.9.0/24  172.31.9.3:8285  udp      -       -  -             -         -      -  n2    -         -",
    ]


def test_routes_show_what_is_wanted_and_what_is_there() -> None:
    answer = {
        "table_generation": 4,
        "local": ["10.244.7.0/24"],
        "table": [{"prefix": "10.244.8.0/24", "hop": "172.31.9.2:8285"}],
        "kernel": [
            {"destination": "10.244.0.0/16", "device": "flannel0", "gateway": None, "kind": "unicast", "state": "ok"},
            {"destination": "10.244.7.0/24", "device": "", "gateway": None, "kind": "blackhole", "state": "missing"},
            {"destination": "10.99.0.0/16", "device": "eth0", "gateway": "172.31.9.9", "kind": "unicast", "state": "stale"},
        ],
    }
    assert routes.render(answer, PLAIN) == [
        "TABLE 4        HOP",
        "10.244.7.0/24  this node",
        "10.244.8.0/24  172.31.9.2:8285",
        "",
        "KERNEL ROUTE   BY                   STATE",
        "10.244.0.0/16  dev flannel0         ok",
        "10.244.7.0/24  blackhole            missing",
        "10.99.0.0/16   172.31.9.9 dev eth0  stale",
    ]


def test_top_shows_the_busiest_peers_first_and_what_nobody_counts_as_dashes() -> None:
    def looks(sent: int) -> dict[str, object]:
        busy = {
            "subnets": "10.244.8.0/24",
            "public_ip": "172.31.9.2",
            "path": PATH,
            "traffic": as_json(Traffic(sent, sent * 1000, 0, 0, 1, 2)),
        }
        quiet = {
            "subnets": "10.244.9.0/24",
            "public_ip": "172.31.9.3",
            "path": None,
            "traffic": as_json(Traffic(5, 500, 0, 0, 0, 0)),
        }
        unknown = {"subnets": "10.244.10.0/24", "public_ip": "172.31.9.4", "path": None, "traffic": None}
        return {**STATUS, "peers": [unknown, quiet, busy], "traffic_reason": "nobody knows"}

    found = top.peer_rates(looks(10), looks(30), 2.0)
    assert top.render(STATUS | {"traffic_reason": "nobody knows"}, [], found, PLAIN)[2:] == [
        "PEER            ENDPOINT    PATH       RTT   SENT/S  RECEIVED/S  PACKETS/S  DROPS",
        "10.244.8.0/24   172.31.9.2  lossy  0.42 ms  10.0 kB         0 B         10      3",
        "10.244.9.0/24   172.31.9.3  -            -      0 B         0 B          0      0",
        "10.244.10.0/24  172.31.9.4  -            -        -           -          -      -",
        "traffic: nobody knows",
        "",
        "COUNTER  PER SECOND  BYTES/S  TOTAL",
    ]


def test_top_shows_rates_of_what_has_changed_and_survives_a_new_datapath() -> None:
    before = {"datapath": {"verdicts": {"encapsulated": {"packets": 100, "bytes": 1000}}, "counters": {"polls": 500}}}
    now = {"datapath": {"verdicts": {"encapsulated": {"packets": 300, "bytes": 5000}}, "counters": {"polls": 20}}}
    found = top.rates(before, now, 2.0)
    assert found == [top.Rate("encapsulated", 300, 100.0, 2000.0), top.Rate("polls", 20, 10.0)]
    assert top.render(STATUS, found, [], PLAIN) == [
        "ready, datapath userspace, peers 3, for 2 h 14 min",
        "",
        "COUNTER       PER SECOND  BYTES/S  TOTAL",
        "encapsulated         100   2.0 kB    300",
        "polls                 10              20",
    ]


def test_leases_are_sorted_and_say_what_is_no_lease() -> None:
    value = encode_attributes(NodeAttributes(IPv4Address("172.31.9.2"), flanpy=FlanpyInfo("n2")))
    kept = encode_attributes(NodeAttributes(IPv4Address("172.31.9.3"), backend_type="vxlan"))
    records = RecordSet(
        9,
        (
            Record("subnets/10.244.20.0-24", value, 1, 1, 77),
            Record("subnets/10.244.8.0-24", kept, 2, 2, 0),
            Record("subnets/10.244.9.0-24", value, 3, 3, 78),
            Record("subnets/x", b"{", 4, 4, 0),
        ),
    )
    rows, refused = leases.read(records, {77: 3600}.get)
    assert leases.render(rows, refused, PLAIN, "/n/subnets/") == [
        "SUBNET          PUBLIC IP   BACKEND  TIME LEFT    NODE",
        "10.244.8.0/24   172.31.9.3  vxlan    reservation  -",
        "10.244.9.0/24   172.31.9.2  udp      ended        n2",
        "10.244.20.0/24  172.31.9.2  udp      1 h          n2",
        "",
        "no leases, refused by every node",
        "  subnets/x: key 'subnets/x': not of the form subnets/10.5.52.0-24",
    ]
    assert leases.render([], [], PLAIN, "/n/subnets/") == ["no leases at /n/subnets/"]


def test_ping_names_who_knows_more_when_nothing_comes_back_from_a_node() -> None:
    def last(own: bool, stops: bool, *rtts: float | None) -> str:
        address = IPv4Address("10.244.9.3")
        target = Target("web-0", address, Node("n2", (), IPv4Address("10.0.0.2"), "10.0.0.2:8285", own))
        plan = Plan(target, address, (Step(HERE, "table", "to n2", stops),), 1472)
        return ping.render(plan, rtts, None, False, PLAIN)[-1]

    assert last(False, False, None, None) == ping.NOTHING_BACK
    assert last(False, False, None, 0.001).startswith("1 of 2 answered")
    assert last(True, False, None) == last(False, True, None) == "0 of 1 answered", "no path to a peer is in question"


def test_doctor_prints_a_cure_below_what_is_wrong_and_ends_by_the_worst() -> None:
    checks = [
        Check("tun", "ok", "there"),
        Check("ip_forward", "warning", "is 0", "sysctl"),
        Check("agent", "error", "none", "start it"),
    ]
    assert doctor.render(checks, PLAIN) == [
        "ok       tun         there",
        "warning  ip_forward  is 0",
        "                     cure: sysctl",
        "ERROR    agent       none",
        "                     cure: start it",
    ]
    assert [doctor.exit_status(checks[:number]) for number in (1, 2, 3)] == [0, 1, 11]


def test_colour_marks_words_and_nothing_else() -> None:
    coloured, plain = status.render(STATUS, Paint(True)), status.render(STATUS, PLAIN)
    assert "\x1b[32mready\x1b[0m" in coloured[0]
    assert [strip(line) for line in coloured] == [strip(line) for line in plain]


def strip(text: str) -> str:
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"):
        text = text.replace(code, "")
    return text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (1, "1 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min 59 s"), (90000, "1 d 1 h"), (86401, "1 d")],
)
def test_times_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_tables_and_control_characters() -> None:
    assert [size(count) for count in (0, 999, 1000, 1.5e6, 2e15)] == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2000.0 TB"]
    assert table(("A", "N"), [("x", 1), ("long", 20)], numbers=(1,)) == ["A      N", "x      1", "long  20"]
    assert printable("a\x1b[2J\nb\x7f") == r"a\x1b[2J b\x7f"


# ------------------------------------------------------------------------------------------------ no agent, a bad one


@pytest.mark.parametrize("command", ASKING)
def test_without_an_agent_a_command_says_so_and_ends_with_ten(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([command, "--run-dir", str(tmp_path)]) == 10
    assert f"no agent answers at {tmp_path}/control.sock" in capsys.readouterr().err


def test_the_run_directory_comes_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANPY_RUN_DIR", str(tmp_path))
    with pytest.raises(AgentAbsent, match=str(tmp_path)):
        ask_agent(main.parse(["status"]), "status")


def test_status_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    assert main.main(["status", "--run-dir", str(tmp_path), "--wait", "0.3"]) == 10


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_status_refuses_to_wait_for_what_is_no_time(seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["status", "--run-dir", str(tmp_path), f"--wait={seconds}"]) == 2
    assert capsys.readouterr().err == f"flanpy: --wait: {seconds} is out of range (0 to 86400 seconds)\n"


@contextmanager
def answering(run_dir: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that is no agent behind the control socket, for one client."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / SOCKET_NAME))
        listener.listen()

        def one() -> None:
            client, _ = listener.accept()
            with client:
                serve(client)

        thread = threading.Thread(target=one, daemon=True)
        thread.start()
        yield
        thread.join(timeout=5)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b"null\n", b"\xff\n", b"[" * 100_000], ids=range(6))
def test_what_is_no_answer_is_no_agent(answer: bytes, tmp_path: Path) -> None:
    with answering(tmp_path, lambda client: client.sendall(answer)), pytest.raises(AgentAbsent):
        ask(tmp_path, "status")


def test_an_answer_that_drips_for_ever_is_given_up_in_time(tmp_path: Path) -> None:
    over = threading.Event()

    def drip(client: socket.socket) -> None:
        while not over.wait(0.02):
            try:
                client.sendall(b" ")
            except OSError:
                return

    with answering(tmp_path, drip):
        with pytest.raises(AgentAbsent, match="does not come to an end|timed out|time is over"):
            ask(tmp_path, "status", timeout_s=0.3)
        over.set()


@pytest.mark.parametrize("command", ["status", "peers", "routes", "pods", "log-level", "top"])
def test_a_command_that_asks_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from flanpy.cli.main import main; main(sys.argv[1:]); "
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--run-dir", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not (HEAVY | (set() if command == "top" else SLOW)) & set(done.stdout.split())


def test_the_number_of_our_routes_is_the_one_that_the_agent_gives_them() -> None:
    assert left._OUR_PROTOCOL == ROUTE_PROTOCOL


@pytest.mark.parametrize("name", [process_launch.SOCKET_NAME, process_launch.FRESH_SOCKET_NAME])
def test_a_process_that_an_agent_has_left_is_seen_wherever_it_listens(name: str, tmp_path: Path) -> None:
    """At the place beside after it has taken over while no agent ran."""
    assert left._process(tmp_path) == []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / name))
        listener.listen()
        assert left._process(tmp_path) == [f"the datapath process {os.getpid()} lives"]


# ------------------------------------------------------------------------------------------------ completion


def complete(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = (
        f'source <("{sys.executable}" -m flanpy completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _flanpy; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", "flanpy", *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sta",), ["status"]),
        (("re",), ["reserve", "release", "reload"]),
        (("status", "--w"), ["--wait"]),
        (("lab", "sta"), ["status", "start"]),
        (("lab", "up", "--ho"), ["--hosts"]),
        (("log-level", "w"), ["warning"]),
        (("release", "10.244.7.0/24", "--y"), ["--yes"]),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_and_flags(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize(("shell", "line"), [("zsh", "#compdef flanpy"), ("fish", "complete -c flanpy -f")])
def test_other_shells_have_a_script_of_their_own(shell: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == line
    assert "log-level" in out


@pytest.mark.parametrize("command", [*ASKING, "doctor", "leases", "reserve", "release", "completion"])
def test_every_command_explains_itself_with_its_exit_status(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "exit status" in out or command == "completion"


def test_json_of_a_check_is_stable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--run-dir", str(tmp_path), "--output", "json"]) == 11
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"name", "level", "reason", "cure"} == set(checks[0])
    assert next(check for check in checks if check["name"] == "agent")["level"] == "error"
