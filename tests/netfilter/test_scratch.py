"""The netns in which rules are tried out."""

import os
import socket

import pytest

from nodeagent.netfilter.scratch import in_scratch_netns


def netns() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_it_is_another_one_each_time() -> None:
    """Nothing that is tried out meets what was tried before, nor anybody's own rules."""
    names = [in_scratch_netns(netns) for _ in range(2)]
    assert netns() not in names
    assert in_scratch_netns(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]


def test_what_fails_in_it_fails_for_the_caller() -> None:
    """The exception is the caller's, and the caller's thread is where it was."""
    before = netns()

    def fail() -> None:
        raise LookupError("tried out")

    with pytest.raises(LookupError, match="tried out"):
        in_scratch_netns(fail)
    assert netns() == before
