"""The exceptions of whoever reads or writes rules and routes, and what the kernel's errnos mean.

Functions that raise `RulesError` have turned the kernel's ``OSError`` into it with
`wrap_oserror`, once, at the call: the message says what was being done and, where an errno
has a known cause, what is missing.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_HINTS = {
    errno.EAGAIN: "a passing shortage of the machine's, of threads say; tried again",
    errno.EFBIG: "the kernel's answer is too long: something makes too many of these; remove them",
    errno.EPERM: "CAP_NET_ADMIN is missing, or another process owns the table",
    errno.EACCES: "refused: a capability is missing, or SELinux or the like forbids it",
    errno.ENOENT: "the kernel lacks a feature that this needs, or it was just removed",
    errno.EOPNOTSUPP: "the kernel was built without a feature that this needs",
    errno.EPROTONOSUPPORT: "the kernel has no netfilter netlink (CONFIG_NF_TABLES)",
    errno.EAFNOSUPPORT: "the kernel was built without this address family",
    errno.ENOBUFS: "the kernel has no memory left for netlink messages",
    errno.ENOMEM: "the kernel is out of memory",
    errno.EBADMSG: "the kernel's answer ends too early, or lacks what it should have",
    errno.ENODEV: "the pod has no loopback interface",
    errno.ENETDOWN: "the pod's loopback interface is down",
    errno.ENOSPC: "a limit of the kernel is reached (user.max_net_namespaces)",
}


class RulesError(Exception):
    """Rules or routes could not be read or written. Worth a retry.

    How much was written before the error is said where the exception is raised. A
    transaction of nftables is written whole or not at all. A text for iptables has a
    transaction for each of its tables, and each family is a text of its own: those before
    the one that failed are written.
    """


class LoopbackDownError(RulesError):
    """The pod's `lo` is down, as it is while the runtime takes a sandbox down: no route fits."""


def explain(number: int) -> str:
    """Return the name of the errno `number`, with what it means for rules where that is known."""
    name = errno.errorcode.get(number, str(number))
    return f"{name}: {_HINTS[number]}" if number in _HINTS else name


@contextmanager
def wrap_oserror(action: str) -> Iterator[None]:
    """Turn an ``OSError`` inside into a `RulesError` that begins with "cannot `action`"."""
    try:
        yield
    except OSError as error:
        kind = LoopbackDownError if error.errno == errno.ENETDOWN else RulesError
        raise kind(f"cannot {action}: {explain(error.errno or 0)}") from error
