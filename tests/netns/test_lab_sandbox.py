"""The sandbox: one process holds it, and whatever ends that process ends everything, with nothing left on the machine.

test process ── lifeline ── PID 1 ── namespaces a, b (no cables)
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from flanpy.errors import LabError
from flanpy.lab.process import has_ended
from flanpy.lab.sandbox import Sandbox
from tests.support.lab import namespaces_of, outside, processes_in
from tests.support.polling import soon

CREATE_AND_WAIT = (
    "import sys; from flanpy.lab.sandbox import Sandbox; s = Sandbox.create(); s.script('ip netns add a'); "
    "{more}; print(s.pid, flush=True); sys.stdin.read()"
)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.create() as made:
        made.script("ip netns add a; ip netns add b; ip -n a link set lo up")
        yield made


def test_a_sandbox_changes_nothing_outside(sandbox: Sandbox) -> None:
    before = outside()
    sandbox.script("ip link add x type bridge; ip netns add c; echo 1.2.3.4 nowhere >>/etc/hosts; mount -t tmpfs t /mnt")
    assert outside() == before
    assert sandbox.places() == ("a", "b", "c")


def test_after_the_block_nothing_is_left() -> None:
    before = outside()
    with ExitStack() as held:
        with Sandbox.create() as sandbox:
            sandbox.script("ip netns add a; ip link add x type veth peer name y netns a")
            sandbox.start("a", ["sleep", "1000"], "/run/lab/sleep.log")
            inside = held.enter_context(namespaces_of(sandbox.pid))
            assert len(processes_in(inside)) >= 2
        assert processes_in(inside) == []
    assert outside() == before


def test_killing_the_holder_ends_everything_in_it(sandbox: Sandbox) -> None:
    attached = sandbox.popen("a", ["sleep", "1000"])
    attached.inner()
    sandbox.start("b", ["sh", "-c", "trap '' TERM INT; sleep 1000"], "/run/lab/sleep.log")
    with namespaces_of(sandbox.pid) as inside:
        os.kill(sandbox.pid, signal.SIGKILL)
        sandbox.wait_gone()
        assert attached.wait(5) == -signal.SIGKILL
        attached.communicate()
        assert soon(lambda: processes_in(inside) == [])
    assert not sandbox.alive
    with pytest.raises(LabError, match="the holder of the lab has ended"):
        sandbox.run("a", ["true"])


def test_killing_the_creator_ends_the_sandbox() -> None:
    script = [sys.executable, "-c", CREATE_AND_WAIT.format(more="s.start('a', ['sleep', '1000'], '/run/lab/log')")]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout is not None
        holder = int(creator.stdout.readline())
        with namespaces_of(holder) as inside:
            creator.kill()
            creator.wait()
            assert soon(lambda: processes_in(inside) == [])


def test_a_detached_sandbox_outlives_its_creator() -> None:
    script = [sys.executable, "-c", CREATE_AND_WAIT.format(more="s.detach()")]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout is not None
        holder = int(creator.stdout.readline())
        creator.kill()
        creator.wait()
    with Sandbox.adopt(holder) as sandbox:
        assert sandbox.run("a", ["echo", "still here"]).stdout == "still here\n"
    assert has_ended(holder)


def test_sigterm_ends_the_holder() -> None:
    with Sandbox.create() as sandbox:
        os.kill(sandbox.pid, signal.SIGTERM)
        sandbox.wait_gone()
        assert not sandbox.alive


def test_two_sandboxes_use_the_same_names_and_never_meet(sandbox: Sandbox) -> None:
    with Sandbox.create() as other:
        for number, each in ((1, sandbox), (2, other)):
            each.script(f"ip netns add same; ip -n same link add x type bridge; ip -n same address add 10.0.0.{number}/24 dev x")
        assert "10.0.0.1/24" in sandbox.run("same", ["ip", "-br", "address"]).stdout
        assert "10.0.0.2/24" in other.run("same", ["ip", "-br", "address"]).stdout


def test_exit_statuses_and_deaths_by_signal_come_through(sandbox: Sandbox) -> None:
    assert sandbox.run("a", ["sh", "-c", "exit 7"], check=False).returncode == 7
    assert sandbox.run("a", ["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_a_failing_command_is_an_error_with_its_words(sandbox: Sandbox) -> None:
    with pytest.raises(LabError, match=r"a: sh -c 'echo no luck >&2; exit 3': exit status 3: no luck"):
        sandbox.run("a", ["sh", "-c", "echo no luck >&2; exit 3"])


def test_a_script_stops_at_its_first_failure(sandbox: Sandbox) -> None:
    with pytest.raises(LabError):
        sandbox.script("ip netns add one\nip -batch - <<'END'\nlink add x type nonsense\nEND\nip netns add two\n")
    assert sandbox.places() == ("a", "b", "one")


def test_a_command_that_takes_too_long_is_ended(sandbox: Sandbox) -> None:
    with pytest.raises(LabError, match=r"a: sleep 1000: not done after 0.2 s"):
        sandbox.run("a", ["sleep", "1000"], timeout_s=0.2)
    assert "sleep" not in sandbox.run("a", ["ps", "-eo", "comm"]).stdout


def test_an_unknown_place_is_named_with_those_that_there_are(sandbox: Sandbox) -> None:
    with pytest.raises(LabError, match=r"c: no such host or pod in this lab \(there are: a, b\)"):
        sandbox.run("c", ["true"])


def test_signals_reach_the_command_not_its_wrapper(sandbox: Sandbox) -> None:
    process = sandbox.popen("a", ["sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.01; done"])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=5)[0] == "got it\n"
    assert process.returncode == 5


def test_a_daemon_lives_until_it_is_signalled(sandbox: Sandbox) -> None:
    pid = sandbox.start("a", ["sh", "-c", "echo to the log; exec sleep 1000"], "/run/lab/daemon.log")
    assert soon(lambda: sandbox.path("/run/lab/daemon.log").read_text() == "to the log\n")
    assert sandbox.process_alive(pid)
    sandbox.signal(pid, signal.SIGTERM)
    assert soon(lambda: not sandbox.process_alive(pid))


def test_orphans_are_reaped(sandbox: Sandbox) -> None:
    sandbox.run("a", ["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.01 &) ; done"])
    assert soon(lambda: "sleep" not in sandbox.run(None, ["ps", "-eo", "comm"]).stdout)
    assert "defunct" not in sandbox.run(None, ["ps", "-ef"]).stdout


def test_entering_moves_the_calling_thread_and_no_other(sandbox: Sandbox) -> None:
    before = socket.if_nameindex()
    sandbox.script("ip -n a link add only-here type bridge")
    entered, left, elsewhere = threading.Event(), threading.Event(), []

    def other() -> None:
        entered.wait(5)
        elsewhere.append(socket.if_nameindex())
        left.set()

    thread = threading.Thread(target=other)
    thread.start()
    with sandbox.enter("a"):
        assert [name for _, name in socket.if_nameindex()] == ["lo", "only-here"]
        entered.set()
        left.wait(5)
    thread.join()
    assert elsewhere == [before]
    assert socket.if_nameindex() == before


def test_closing_twice_is_closing_once(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    assert not sandbox.alive
