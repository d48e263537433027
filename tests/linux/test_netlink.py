"""Bounds of what an answer of the kernel may cost."""

import pytest
from pyroute2.netlink.rtnl import RTM_GETRULE

from nodeagent.linux import netlink
from nodeagent.linux.netlink import Netlink

NETLINK_ROUTE = 0
ALL_RULES = bytes([2]).ljust(12, b"\0")  # AF_INET


def test_a_dump_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the bound is an error, and the socket is good for the next question."""
    with Netlink(NETLINK_ROUTE) as kernel:
        rules = kernel.dump(RTM_GETRULE, ALL_RULES)
        assert len(rules) >= 3, "every netns has these"
        monkeypatch.setattr(netlink, "LONGEST_DUMP", len(rules[0]))
        with pytest.raises(OSError, match="File too large"):
            kernel.dump(RTM_GETRULE, ALL_RULES)
        monkeypatch.undo()
        assert kernel.dump(RTM_GETRULE, ALL_RULES) == rules


def test_each_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not kept has no bound."""
    with Netlink(NETLINK_ROUTE) as kernel:
        rules = kernel.dump(RTM_GETRULE, ALL_RULES)
        monkeypatch.setattr(netlink, "LONGEST_DUMP", 0)
        assert list(kernel.each(RTM_GETRULE, ALL_RULES)) == rules
