"""Hearing from the kernel at once when rules, policy rules or routes are changed.

The kernel announces every change of nftables (iptables-nft's included), of policy rules and
of routes to netlink sockets that have subscribed. A `DriftWatch` calls back at the first
announcement; what has changed is then found out by reading, not by decoding announcements.
iptables-legacy and ipset announce nothing.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER, NFNLGRP_NFTABLES

# Groups as bits; those of routes are linux/rtnetlink.h's RTNLGRP_IPV4_ROUTE and _RULE, and
# the same for IPv6.
_NFTABLES = 1 << (NFNLGRP_NFTABLES - 1)
_ROUTES_AND_RULES = 1 << (7 - 1) | 1 << (8 - 1) | 1 << (11 - 1) | 1 << (19 - 1)
_RECEIVE_BUFFER = 8 * 1024
"""Bytes; announcements that do not fit are no loss, one is enough."""
_DRAINED_AT_ONCE = 64
"""Announcements that are thrown away before listening begins again.

More than the buffer holds; bounded, so that a pod that makes changes without end does not keep
the event loop.
"""


class DriftWatch:
    """Netlink sockets in one netns. Whoever makes the watch owns it until `close`.

    A watch calls once and then keeps silent until it is armed again: a pod that rewrites
    its rules in a loop costs one inspection at a time, not one for each change.
    """

    def __init__(self, sockets: tuple[socket.socket, ...], on_drift: Callable[[], None]) -> None:
        """Take over `sockets`; `on_drift` is called from the event loop."""
        self._sockets = sockets
        self._on_drift = on_drift
        self._loop = asyncio.get_running_loop()
        self._armed = False

    def arm(self) -> None:
        """Forget the changes so far, and call back at the next one."""
        for one in self._sockets:
            _drain(one)
            if not self._armed:
                self._loop.add_reader(one.fileno(), self._heard)
        self._armed = True

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._disarm()
        for one in self._sockets:
            one.close()

    def _heard(self) -> None:
        self._disarm()
        self._on_drift()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            for one in self._sockets:
                self._loop.remove_reader(one.fileno())


def open_sockets() -> tuple[socket.socket, ...]:
    """Subscribe to changes of rules and routes in the calling thread's netns.

    Raises ``OSError``.
    """
    return _all_subscribed(
        (NETLINK_NETFILTER, _NFTABLES), (socket.NETLINK_ROUTE, _ROUTES_AND_RULES)
    )


def open_rule_sockets() -> tuple[socket.socket, ...]:
    """Subscribe there to changes of nftables' rules and sets only. Raises ``OSError``."""
    return _all_subscribed((NETLINK_NETFILTER, _NFTABLES))


def _all_subscribed(*wanted: tuple[int, int]) -> tuple[socket.socket, ...]:
    with contextlib.ExitStack() as opened:
        sockets = tuple(
            opened.enter_context(_subscribed(protocol, groups)) for protocol, groups in wanted
        )
        opened.pop_all()
    return sockets


def _subscribed(protocol: int, groups: int) -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        made.bind((0, groups))
    except BaseException:
        made.close()
        raise
    return made


def _drain(heard: socket.socket) -> None:
    for _ in range(_DRAINED_AT_ONCE):
        try:
            heard.recv(1)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: more had come than was kept
            continue
