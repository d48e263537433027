"""The one way in which redirection fails, with what is missing where it is known."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_HINTS = {
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


class RedirectError(Exception):
    """Rules or routes could not be read or written; what stood there stands. Worth a retry."""


class LoopbackDownError(RedirectError):
    """The pod's `lo` is down, as it is while the runtime takes a sandbox down: no route fits."""


def explain(number: int) -> str:
    """Say what the errno `number` means for redirection."""
    name = errno.errorcode.get(number, str(number))
    return f"{name}: {_HINTS[number]}" if number in _HINTS else name


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` inside into a `RedirectError` that says what was being done."""
    try:
        yield
    except OSError as error:
        kind = LoopbackDownError if error.errno == errno.ENETDOWN else RedirectError
        raise kind(f"cannot {doing}: {explain(error.errno or 0)}") from error
