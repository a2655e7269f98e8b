"""flannel's extension backend: the commands that a lease and a view ask for; and the thread that runs them."""

import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy import backends
from flanpy.agent.hooks import HookRunner, run_command
from flanpy.backends import extension
from flanpy.errors import ConfigError, PlatformError
from flanpy.model import Command, DesiredState, FlanpyInfo, Hook, LocalFacts, NodeAttributes
from tests.support.backends import UPLINK, config, lease, view_of
from tests.support.clusters import eventually

CONFIG = config(
    "extension", '"PreStartupCommand": "pre \'a b\'", "SubnetAddCommand": "add $SUBNET", "SubnetRemoveCommand": "remove"'
)
OWN = lease("extension", "10.5.1.0/24", "192.0.2.1", '"mine"')
PEER = lease("extension", "10.5.2.0/24", "198.51.100.2", '"its data"')


def test_each_peer_is_a_hook_and_variables_are_no_shell_s() -> None:
    environment = (("SUBNET", "10.5.2.0/24"), ("PUBLIC_IP", "198.51.100.2"))
    begin, end = (Command(words, environment, "its data\n") for words in (("add", "$SUBNET"), ("remove",)))
    assert extension.plan(CONFIG, OWN, view_of(PEER), UPLINK, 1) == DesiredState(
        None, frozenset(), None, 1500, hooks=frozenset({Hook("peer 10.5.2.0/24", begin, end)})
    )


def test_what_runs_before_the_lease_becomes_its_data() -> None:
    assert backends.startup(CONFIG) == Command(("pre", "a b"))
    assert backends.startup(config("alloc")) is None
    base = NodeAttributes(IPv4Address("192.0.2.1"))
    said = extension.attributes(base, CONFIG, LocalFacts("n", startup_output='line "1"\nline 2'))
    assert (said.backend_type, said.backend_data, said.flanpy) == ("extension", r'"line \"1\"\nline 2"', FlanpyInfo("n"))


def test_a_command_with_an_open_quote_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^Backend\.SubnetAddCommand: No closing quotation: "):
        backends.startup(config("extension", '"SubnetAddCommand": "add \'x"'))


def test_a_command_gets_its_words_environment_and_input() -> None:
    told = run_command("t", Command(("sh", "-c", 'cat; echo "$A" "$0" >&2', "$(id)"), (("A", "b"),), "in\n"))
    assert told == "in\nb $(id)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("/nowhere",), "t: cannot run '/nowhere': "),
        (("sh", "-c", "echo no; exit 3"), "t: 'sh' ended with status 3: no"),
        (("sh", "-c", "sleep 60 & sleep 60"), "t: 'sh' was ended after 0.2 s"),
    ],
)
def test_a_command_that_fails_or_hangs_is_said(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlatformError) as failure:
        run_command("t", Command(words), 0.2)
    assert str(failure.value).startswith(message)


def test_hooks_begin_end_and_are_tried_again_each_on_its_own(tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"

    def hook(name: str, begin: str) -> Hook:
        return Hook(name, Command(("sh", "-c", begin)), Command(("sh", "-c", f"echo -{name} >>{log}")), essential=name == "own")

    own, good = hook("own", f"echo +own >>{log}"), hook("good", f"echo +good >>{log}")
    bad = hook("bad", f"test -e {gate} && echo +bad >>{log}")
    before = threading.active_count()
    hooks = HookRunner()
    try:
        assert hooks.want(frozenset()) == ([], [])
        assert threading.active_count() == before
        assert hooks.want(frozenset({own, good, bad})) == (["own: still runs"], [])
        eventually(lambda: "+good" in log.read_text(), 10, "the good one has begun")
        eventually(
            lambda: hooks.want(frozenset({own, good, bad}))[1][0].startswith("bad: 'sh' ended with status 1"), 10, "bad is said"
        )
        gate.touch()
        eventually(lambda: hooks.want(frozenset({own, good, bad})) == ([], []), 10, "it is tried again")
        hooks.want(frozenset({own}))
        eventually(lambda: len(log.read_text().split()) == 5, 10, "both have ended")
        assert log.read_text().split() == ["+own", "+good", "+bad", "-bad", "-good"]
    finally:
        hooks.close()
