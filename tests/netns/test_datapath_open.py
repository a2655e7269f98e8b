"""Opening and closing what the userspace datapath stands on: who holds a name or port is said, and nothing is left behind."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flanpy.datapath import DatapathSettings, sockets
from flanpy.datapath.sockets import open_underlay, port_holder
from flanpy.datapath.userspace import UserspaceDatapath
from flanpy.errors import DatapathError, InterfaceError, PlatformError, ResourceBusy
from flanpy.kernel.tun import open_tun
from tests.support.namespaces import inside, namespace
from tests.support.netns import PORT, overlay, start, udp_socket
from tests.support.polling import eventually


def test_a_taken_port_is_named_with_its_holder() -> None:
    with namespace() as where, udp_socket(where, IPv4Address("127.0.0.1"), PORT), inside(where):
        with pytest.raises(ResourceBusy, match=rf"UDP port {PORT} on 127.0.0.1 is in use by .*\(pid {os.getpid()}\)"):
            open_underlay(IPv4Address("127.0.0.1"), PORT)


def test_a_datapath_process_that_may_have_the_port_unseen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose run directory has been emptied runs as another user, and an agent does not see what it has open."""
    monkeypatch.setattr(sockets, "_holders", lambda inodes: set())
    program = tmp_path / "flanpy-datapath"
    shutil.copy("/bin/sleep", program)
    with namespace() as where, udp_socket(where, IPv4Address("127.0.0.1"), PORT), inside(where):
        assert port_holder(PORT) == "the kernel or a process that cannot be seen from here"
        with subprocess.Popen([program, "60"]) as left:
            try:
                eventually(lambda: f"(perhaps flanpy-datapath (pid {left.pid}), if" in port_holder(PORT), 5, "it is named")
            finally:
                left.kill()


def test_an_address_that_is_not_ours_is_refused() -> None:
    with namespace() as where, inside(where), pytest.raises(InterfaceError, match="192.0.2.1: not an address of this machine"):
        open_underlay(IPv4Address("192.0.2.1"), PORT)


def test_a_taken_device_name_says_what_holds_it() -> None:
    with namespace() as where, inside(where):
        held = open_tun("flannel0")
        try:
            with pytest.raises(ResourceBusy, match="TUN device flannel0 exists already"):
                open_tun("flannel0")
        finally:
            held.close()
        where.script("ip link add flannel0 type veth peer name other")
        with pytest.raises(ResourceBusy, match="flannel0 exists already and is no TUN device but one of driver veth"):
            open_tun("flannel0")


@pytest.mark.parametrize("name", ["", "a name", "a/b", "sixteen-bytes-xx"])
def test_what_is_no_device_name_is_refused(name: str) -> None:
    with pytest.raises(PlatformError, match="not a device name"):
        open_tun(name)


def test_without_rights_the_cure_is_named() -> None:
    """In a child that has given up its rights: neither device nor namespace is touched."""
    program = (
        "import os\n"
        "from flanpy.kernel.tun import open_tun\n"
        "from flanpy.errors import PlatformError\n"
        "os.setuid(65534)\n"
        "try: open_tun('flannel0')\n"
        "except PlatformError as error: print(error)\n"
    )
    with namespace() as where:
        said = start([sys.executable, "-c", program], where).communicate(timeout=20)[0]
    assert "root" in said
    assert "flannel0" in said or "/dev/net/tun" in said


def test_closing_gives_up_device_port_and_threads() -> None:
    with overlay() as made:
        made.a.datapath.close()
        assert "flannel0" not in made.a.host.run("ip", "-br", "link")
        with inside(made.a.host):
            open_underlay(made.a.underlay_address, PORT).close()


def test_descriptors_and_threads_stay_flat() -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    with namespace() as where:
        with inside(where):
            where.run("true")
            before = held()
        for _ in range(20):
            with inside(where), suppress(DatapathError, subprocess.SubprocessError):
                tun = open_tun("flannel0", 2)
                underlay = open_underlay(IPv4Address("127.0.0.1"), PORT, 2)
                settings = DatapathSettings("flannel0", IPv4Address("10.5.1.0"), IPv4Address("127.0.0.1"), PORT, queues=2)
                UserspaceDatapath(settings, tun, underlay).close()
        with inside(where):
            assert held() == before


@pytest.mark.parametrize("queues", [1, 2])
def test_a_second_agent_cannot_join_the_port_unnoticed(queues: int) -> None:
    """Its first socket is not to be shared when it is bound."""
    with namespace() as where, inside(where):
        first = open_underlay(IPv4Address("127.0.0.1"), PORT, queues)
        try:
            with pytest.raises(ResourceBusy):
                open_underlay(IPv4Address("127.0.0.1"), PORT, queues)
        finally:
            first.close()
