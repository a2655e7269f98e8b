"""Whom the datapath process runs as."""

import grp
import pwd

import pytest

from flanpy.datapath.process_user import FREE_NUMBERS, NAME, datapath_user, sharers
from flanpy.errors import UsageError


@pytest.fixture
def without_flanpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which packaging has made no user, and somebody has taken the first number."""
    by_name, by_group = pwd.getpwnam, grp.getgrgid

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name == NAME:
            raise KeyError(name)
        return by_name(name)

    def getgrgid(number: int) -> grp.struct_group:
        return by_group(0) if number == FREE_NUMBERS[0] else by_group(number)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(grp, "getgrgid", getgrgid)


@pytest.mark.usefixtures("without_flanpy")
def test_without_a_user_of_its_own_it_gets_a_number_that_nobody_has() -> None:
    uid, gid = datapath_user()
    assert uid == gid
    assert uid in FREE_NUMBERS[1:]
    assert sharers(uid) is None


def test_a_user_that_others_have_too_is_said() -> None:
    assert sharers(65534) == "nobody, as other daemons do"
    assert sharers(pwd.getpwnam("daemon").pw_uid) == "daemon, whose other processes could disturb it"


def test_a_name_or_numbers_are_taken() -> None:
    daemon = pwd.getpwnam("daemon")
    assert datapath_user("daemon") == (daemon.pw_uid, daemon.pw_gid)
    assert datapath_user("60123") == (60123, 60123)
    assert datapath_user("60123:60124") == (60123, 60124)


@pytest.mark.parametrize("wrong", ["root", "0", "60123:0", "no-such-user", "1:2:3", "-1", "4294967295", "daemon:1"])
def test_what_is_no_unprivileged_user_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="--datapath-user"):
        datapath_user(wrong)
