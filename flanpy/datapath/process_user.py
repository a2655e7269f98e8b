"""Who the datapath process runs as: a user that nobody else is, for one's own user may send signals to one and more.

--datapath-user NAME or UID[:GID]   that one
a user ``flanpy``                   made by packaging (config/flanpy-sysusers.conf)
else                                a number that this machine has given to no user and no group
"""

from __future__ import annotations

import grp
import pwd
from contextlib import suppress

from flanpy.errors import UsageError

NAME = "flanpy"
FREE_NUMBERS = range(65520, 65534)
"""Ids that no system gives out by itself: above systemd's dynamic users, below nobody, and in a user namespace of the usual 65536."""
_NOBODY = 65534


def datapath_user(wanted: str = "") -> tuple[int, int]:
    """User and group for this ``--datapath-user``; "": as above. Raises UsageError."""
    if wanted:
        return _named(wanted)
    with suppress(KeyError):
        entry = pwd.getpwnam(NAME)
        return entry.pw_uid, entry.pw_gid
    number = next(filter(_is_free, FREE_NUMBERS), _NOBODY)
    return number, number


def sharers(uid: int) -> str | None:
    """Who else runs as this user, as far as its name tells, or None."""
    if uid == _NOBODY:
        return "nobody, as other daemons do"
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
        return None if name == NAME else f"{name}, whose other processes could disturb it"
    return None


def _is_free(number: int) -> bool:
    with suppress(KeyError):
        pwd.getpwuid(number)
        return False
    with suppress(KeyError):
        grp.getgrgid(number)
        return False
    return True


def _named(wanted: str) -> tuple[int, int]:
    uid, _, gid = wanted.partition(":")
    if uid.isdecimal() and (gid.isdecimal() or not gid):
        ids = int(uid), int(gid or uid)
        if all(0 < each < 2**32 - 1 for each in ids):
            return ids
    elif not gid:
        with suppress(KeyError):
            entry = pwd.getpwnam(wanted)
            if entry.pw_uid != 0:
                return entry.pw_uid, entry.pw_gid
    raise UsageError(
        f"--datapath-user {wanted}: not an unprivileged user of this machine; a name, or UID or UID:GID above 0, is right"
    )
