"""The agent's login at etcd loses its rights while it runs, and gets them back."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flanpy.model import DEFAULT_PREFIX
from tests.support.clusters import Agent, Cluster, bare
from tests.support.store_faults import attributes, seconds_until


def enable_logins(alone: Cluster) -> None:
    """Users root and node; node may read and write below the prefix, until that is taken away."""
    for user in ("root", "node"):
        alone.etcd("auth/user/add", {"name": user, "password": "secret"})
        alone.etcd("auth/role/add", {"name": user})
        alone.etcd("auth/user/grant", {"user": user, "role": user})
    start = f"{DEFAULT_PREFIX}/".encode()
    keys = {"key": base64.b64encode(start).decode(), "range_end": base64.b64encode(start[:-1] + b"0").decode()}
    alone.etcd("auth/role/grant", {"name": "node", "perm": {"permType": "READWRITE", **keys}})
    alone.etcd("auth/enable", {})


def as_root(alone: Cluster, method: str, body: dict[str, Any]) -> None:
    """One call with a token of root."""
    token = alone.etcd("auth/authenticate", {"name": "root", "password": "secret"})["token"]
    argv = ["curl", "-sf", "--noproxy", "*", "-H", f"Authorization: {token}", "-d", json.dumps(body)]
    alone.sandbox.run(None, [*argv, f"{alone.lab.etcd_url}/v3/{method}"])


def test_the_agent_s_role_is_taken_away_and_given_back(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """Row 26: the permission of the agent's user is removed; later it is given back, and etcd restarts, which forgets every token.

    Without it the agent says that it is refused and what to grant; with it again it goes on without a restart.
    Passes when: re-authenticated or a visible error < 10 s; never a silently dead watch.
    """
    with bare(tmp_path) as alone:
        enable_logins(alone)
        flags = ("--datapath=userspace", "--etcd-username=node", "--etcd-password=secret")
        with Agent(alone, *flags) as agent:
            agent.says("ready: subnet")
            as_root(alone, "auth/user/revoke", {"name": "node", "role": "node"})
            said_s = seconds_until(lambda: "give user node a role with readwrite on the prefix" in agent.log, 12, "it says so")
            as_root(alone, "auth/user/grant", {"user": "node", "role": "node"})
            back_s = seconds_until(lambda: "etcd answers again" in agent.log, 12, "it works again")
            alone.lab.stop_etcd(signal.SIGKILL)
            alone.lab.start_etcd()
            seconds_until(lambda: agent.log.count("etcd answers again") == 2, 12, "it has logged in again")
            lease = {"key": base64.b64encode(f"{DEFAULT_PREFIX}/subnets/10.244.250.0-24".encode()).decode()}
            value = base64.b64encode(attributes("192.0.2.50").encode()).decode()
            as_root(alone, "kv/put", {**lease, "value": value})
            agent.says("in sync with 1 peer,")
            assert "secret" not in agent.log
    measured(f"refused: said after {said_s:.1f} s; granted again: works after {back_s:.1f} s; a restarted etcd: logged in again")
