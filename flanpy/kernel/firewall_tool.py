"""Runs nft and iptables: as lists of words, never by a shell, with a time limit; what they refuse becomes a PlatformError with a cure."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flanpy.errors import SHORTAGES, PlatformError, reason_of

TIMEOUT_S = 5.0
"""The loop waits for them; they take milliseconds."""
LOCK_WAIT_S = 2
"""How long iptables-legacy may wait for its lock."""
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CURES = (
    (
        ("Operation not permitted", "Permission denied", "must be root"),
        "run as root; nft needs CAP_NET_ADMIN, iptables-legacy CAP_NET_RAW too",
    ),
    (("JSON support not compiled",), "install an nft with JSON, or give --firewall iptables"),
    (("xtables lock",), "another program holds iptables' lock; it is tried again"),
    (("MASQUERADE", "masquerade"), "this kernel cannot masquerade: modprobe nft_masq xt_MASQUERADE (CONFIG_NFT_MASQ)"),
    (
        ("does not exist", "No such file", "not supported"),
        "this kernel lacks a part: modprobe nf_tables nft_nat (CONFIG_NF_TABLES, CONFIG_NFT_NAT)",
    ),
)


@dataclass(frozen=True, slots=True)
class Done:
    """What a tool has answered."""

    status: int
    output: str
    complaint: str


def find_tool(name: str) -> str | None:
    """The path of a tool, by PATH and where administrators' tools are; None when it is not there."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SEARCH}")


def run_tool(*argv: str, text: str = "") -> Done:
    """Run one command, whatever it answers. Raises PlatformError when it cannot be run or does not end."""
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env={"PATH": _SEARCH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise PlatformError(f"{argv[0]} has not ended within {TIMEOUT_S:.0f} s; it was stopped, and is tried again") from error
    except OSError as error:
        cure = "" if error.errno in SHORTAGES else "; install it anew"
        raise PlatformError(f"{argv[0]} cannot be run: {reason_of(error)}{cure}") from error
    return Done(done.returncode, done.stdout, done.stderr)


def demand(*argv: str, text: str = "") -> str:
    """Run one command that has to succeed, and return its output. Raises PlatformError that says what is wrong."""
    done = run_tool(*argv, text=text)
    if done.status:
        raise refused(argv, done)
    return done.output


def refused(argv: tuple[str, ...], done: Done) -> PlatformError:
    """The error for a command that has failed."""
    said = " ".join(line.strip() for line in done.complaint.splitlines() if line.strip(" \t^~"))[:300]
    cure = next((cure for words, cure in _CURES if any(word in said for word in words)), "the firewall is as it was")
    return PlatformError(f"{Path(argv[0]).name}: {said or f'exit status {done.status}'}; {cure}")
