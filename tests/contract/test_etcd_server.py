"""The supervised etcd: started, restarted, stopped, and gone with its parent; and what is said when it cannot be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flanpy.errors import PlatformError, ResourceBusy
from flanpy.lab.process import has_ended
from flanpy.stores.etcd import EtcdOptions, open_store
from flanpy.stores.server import EtcdServer, EtcdServerSettings, free_port
from tests.support.etcd import DEADLINE_S
from tests.support.polling import eventually

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import sys, threading
from pathlib import Path
from flanpy.stores.server import EtcdServer, EtcdServerSettings
directory = Path(sys.argv[1])
with EtcdServer(EtcdServerSettings(directory / "data", directory / "log", sys.argv[2])) as server:
    print(server.pid, flush=True)
    threading.Event().wait(60)
"""


def settings(directory: Path) -> EtcdServerSettings:
    return EtcdServerSettings(directory / "data", directory / "etcd.log", f"http://127.0.0.1:{free_port()}")


def test_it_is_healthy_inside_the_block_and_gone_after_it(directory: Path) -> None:
    with EtcdServer(settings(directory)) as server:
        pid = server.pid
        assert server.is_healthy()
        with open_store(EtcdOptions((server.settings.client_url,))) as store:
            store.put("config", b"{}")

    assert has_ended(pid)
    server.stop()


def test_it_is_started_again_with_its_data_when_it_dies(directory: Path) -> None:
    with EtcdServer(settings(directory)) as server, open_store(EtcdOptions((server.settings.client_url,))) as store:
        record = store.put("config", b"{}")
        first = server.pid
        os.kill(first, signal.SIGKILL)
        eventually(lambda: server.restarts == 1 and server.is_healthy(), DEADLINE_S, "etcd runs again")

        assert server.pid != first
        with open_store(EtcdOptions((server.settings.client_url,))) as again:
            assert again.read("config") == record


def test_it_dies_with_its_parent_even_if_that_is_killed(directory: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with subprocess.Popen([sys.executable, "-c", CHILD, directory, url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.kill()

    eventually(lambda: has_ended(pid), DEADLINE_S, "etcd is gone")


def test_ctrl_c_stops_it_too(directory: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    words = [sys.executable, "-c", CHILD, directory, url]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGINT)

    assert has_ended(pid)


def test_a_taken_port_is_named(directory: Path) -> None:
    wanted = settings(directory)
    with socket.create_server(("127.0.0.1", int(wanted.client_url.rsplit(":", 1)[1]))):
        with pytest.raises(ResourceBusy, match=f"cannot listen on {wanted.client_url}: Address already in use"):
            EtcdServer(wanted).start()


def test_an_address_of_another_machine_is_named(directory: Path) -> None:
    with pytest.raises(ResourceBusy, match=r"cannot listen on http://192\.0\.2\.1:2379: Cannot assign"):
        EtcdServer(replace(settings(directory), client_url="http://192.0.2.1:2379")).start()


def test_a_missing_binary_names_the_package(directory: Path) -> None:
    with pytest.raises(PlatformError, match="no-such-etcd is not installed.*apt-get install etcd-server"):
        EtcdServer(replace(settings(directory), binary="no-such-etcd")).start()


def test_an_etcd_that_does_not_come_up_is_reported_with_its_last_words(directory: Path) -> None:
    with pytest.raises(PlatformError, match="ended at once.*invalid auth"):
        EtcdServer(replace(settings(directory), extra=("--auth-token=nonsense",), restart=False)).start()
    with pytest.raises(PlatformError, match=r"not healthy within 1\.5 s.*invalid auth"):
        EtcdServer(replace(settings(directory), extra=("--auth-token=nonsense",), start_timeout_s=1.5)).start()
