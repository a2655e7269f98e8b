"""Host checks on their texts, and what importing the layer costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from flanpy.kernel.platform import capability_finding, forward_finding, kernel_finding, tun_finding


@pytest.mark.parametrize("release", ["5.15.0-91-generic", "6.1.0-18-amd64", "6.18.44", "7.0", "strange"])
def test_a_kernel_that_is_new_enough_or_unreadable_is_no_finding(release: str) -> None:
    assert kernel_finding(release) is None


@pytest.mark.parametrize("release", ["5.14.21", "4.19.0-26-amd64", "3.10.0"])
def test_an_old_kernel_is_a_warning_that_names_the_oldest_tested(release: str) -> None:
    finding = kernel_finding(release)
    assert finding is not None
    assert (finding.level, str(finding)) == (
        "warning",
        f"Linux {release} is older than 5.15, the oldest that is tested; use a kernel from 5.15 on",
    )


@pytest.mark.parametrize(("status", "missing"), [("CapEff:\t000001ffffffffff\n", False), ("CapEff:\t0000000000001000\n", False)])
def test_net_admin_in_the_effective_set_is_no_finding(status: str, missing: bool) -> None:
    assert (capability_finding(status) is not None) is missing


def test_without_net_admin_the_cure_is_named() -> None:
    finding = capability_finding("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000002fff\nCapBnd:\t000001ffffffffff\n")
    assert finding is not None
    assert finding.level == "error"
    assert "AmbientCapabilities=CAP_NET_ADMIN" in finding.cure


def test_an_unreadable_status_is_no_finding() -> None:
    assert capability_finding("") is None


def test_ip_forward_off_is_a_warning_with_the_command_that_sets_it() -> None:
    finding = forward_finding("0\n")
    assert finding is not None
    assert (finding.level, finding.cure) == ("warning", "sysctl -w net.ipv4.ip_forward=1")
    assert forward_finding("1\n") is None
    assert forward_finding("") is None


def test_a_missing_clone_device_is_an_error_with_the_commands_that_make_it(tmp_path: Path) -> None:
    finding = tun_finding(str(tmp_path / "net" / "tun"))
    assert finding is not None
    assert finding.level == "error"
    assert "modprobe tun" in finding.cure
    assert tun_finding("/dev/null") is None


@pytest.mark.parametrize(
    "module", ["flanpy.kernel", "flanpy.kernel.platform", "flanpy.kernel.messages", "flanpy.kernel.route_codec"]
)
def test_importing_what_needs_no_netlink_does_not_import_pyroute2(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.startswith('pyroute2.') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
