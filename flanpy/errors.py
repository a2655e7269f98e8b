"""Every exception that flanpy raises on purpose.

    FlanpyError                      exit  what is wrong
    ├── UsageError                    2    a flag, environment variable or options file is wrong
    ├── ConfigError                   3    the network config is missing or wrong (all problems at once)
    ├── CodecError                    1    an etcd key or value that does not parse (refused, never fatal)
    ├── StoreError                    4    etcd
    │   ├── StoreUnavailable          4    not reachable, timed out, no leader: try again
    │   ├── StoreDenied               4    authentication or permission: try again, but say it loudly
    │   └── Compacted                 -    the revision to watch from is gone: list again, then watch
    ├── PlatformError                 5    the kernel or the machine lacks something; the message names the cure
    ├── InterfaceError                5    no underlay interface fits, or more than one does
    ├── ResourceBusy                  6    a device name or UDP port that somebody else holds
    ├── LeaseError                    7    no subnet could be had
    │   ├── PoolExhausted             7    every subnet is taken
    │   └── IdentityConflict          7    another living node uses our identity or address
    ├── DatapathError                 8    the datapath could not start, or has died
    │   └── DatapathWaits             8    it keeps what it has, and wants to be asked again soon
    ├── LabError                      9    the lab could not do what was asked
    └── AgentAbsent                  10    no agent answers on this host

A message says what, where, and what would be right. ``exit_code`` is the process's exit status when the error ends it;
0 is success, 1 an error that is not in this list (a defect).
"""

from __future__ import annotations

import errno
from types import MappingProxyType

SHORTAGES = MappingProxyType(
    {
        errno.EMFILE: "this process has as many descriptors as it may have: raise its limit (`ulimit -n`; systemd: LimitNOFILE=)",
        errno.ENFILE: "this machine has as many descriptors as it may have: raise sysctl fs.file-max, or end what holds so many",
        errno.ENOMEM: "no memory is left: give the machine or the service more (systemd: MemoryMax=), or end what uses it",
        errno.ENOBUFS: "the kernel has no memory left for sockets: give the machine or the service more (systemd: MemoryMax=)",
    }
)
"""What is to be done when the kernel is short of something, whatever was asked of it."""


def reason_of(error: OSError) -> str:
    """An errno in words for an operator: which file, what is wrong with it, and the cure where it is a shortage."""
    words = error.strerror or str(error) or type(error).__name__
    about = f"{error.filename}: {words}" if isinstance(error.filename, str) else words
    cure = SHORTAGES.get(error.errno or 0)
    return f"{about}; {cure}" if cure else about


class FlanpyError(Exception):
    """Base of all errors raised on purpose; ``str()`` is the message for the operator."""

    exit_code = 1


class UsageError(FlanpyError):
    """A flag, an environment variable or the options file is wrong."""

    exit_code = 2


class ConfigError(FlanpyError):
    """The network config is missing or wrong; ``problems`` holds one line for each, with its key path."""

    exit_code = 3

    def __init__(self, problems: list[str] | tuple[str, ...] | str) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class CodecError(FlanpyError):
    """An etcd key or value does not parse; the item is refused and everything else goes on."""


class StoreError(FlanpyError):
    """The lease store did not do what was asked."""

    exit_code = 4


class StoreUnavailable(StoreError):
    """The store cannot be reached or has no leader; trying again later is right."""


class StoreDenied(StoreError):
    """The store refuses us: credentials, permission or certificate; an operator has to act."""


class Compacted(StoreError):
    """The revision to watch from has been compacted: list again and watch from the new revision."""


class PlatformError(FlanpyError):
    """The kernel or the machine lacks something that is needed; the message names the cure."""

    exit_code = 5


class InterfaceError(FlanpyError):
    """No underlay interface fits the options, or more than one does."""

    exit_code = 5


class ResourceBusy(FlanpyError):
    """A device name, UDP port or file that somebody else holds."""

    exit_code = 6


class LeaseError(FlanpyError):
    """No subnet could be had."""

    exit_code = 7


class PoolExhausted(LeaseError):
    """Every subnet between SubnetMin and SubnetMax is taken."""


class IdentityConflict(LeaseError):
    """Another living node uses our identity or our public address."""


class DatapathError(FlanpyError):
    """The datapath could not start, or has died."""

    exit_code = 8


class DatapathWaits(DatapathError):
    """The datapath cannot do now what was asked, but has lost nothing: it is to be kept and asked again."""


class LabError(FlanpyError):
    """The lab could not do what was asked."""

    exit_code = 9


class AgentAbsent(FlanpyError):
    """A command needs the agent of this host, and none answers."""

    exit_code = 10


class CniError(FlanpyError):
    """A CNI request that failed; ``code`` is the specification's (or from 100 on our own), ``details`` what else is known."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details
