"""What a failure of the kernel is called."""

import errno
import os

import pytest

from nodeagent.netfilter.errors import LoopbackDownError, RulesError, wrap_oserror


def wrapped(number: int) -> RulesError:
    with pytest.raises(RulesError) as caught, wrap_oserror("write the rules"):
        raise OSError(number, os.strerror(number))
    return caught.value


def test_the_action_and_the_cause_are_named() -> None:
    """An operator reads what was done, the errno's name, and what is missing."""
    assert str(wrapped(errno.EPERM)) == (
        "cannot write the rules: EPERM: CAP_NET_ADMIN is missing, or another process owns the table"
    )
    assert str(wrapped(errno.EXDEV)) == "cannot write the rules: EXDEV"
    assert str(wrapped(4096)) == "cannot write the rules: 4096"


def test_who_needs_the_errno_finds_it() -> None:
    """The cause is kept: readers decide by its number whether a table is missing."""
    cause = wrapped(errno.ENOENT).__cause__
    assert isinstance(cause, FileNotFoundError)


@pytest.mark.parametrize(("number", "down"), [(errno.ENETDOWN, True), (errno.ENODEV, False)])
def test_loopback_that_is_down_has_a_type(number: int, down: bool) -> None:
    """It is how a sandbox looks that the runtime takes down: no fault to log."""
    assert isinstance(wrapped(number), LoopbackDownError) is down


def test_other_exceptions_pass() -> None:
    """A mistake of ours is no failure of the kernel's."""
    with pytest.raises(KeyError), wrap_oserror("write the rules"):
        raise KeyError("ours")
