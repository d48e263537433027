"""libnftables in a thread with a descriptor table of its own.

The library waits for the kernel with select(), and glibc aborts a process that calls
select() with a descriptor of 1,024 or more (FD_SETSIZE). An agent with many pods has that
many open. In the library's thread its socket has a single-digit number, however many
descriptors the rest of the agent has.
"""

import errno
import os
import queue
import socket
import threading

import nftables

from nodeagent.linux import fd_limit as descriptors
from nodeagent.linux.thread_start import start_thread
from nodeagent.netfilter.errors import RulesError, explain, wrap_oserror
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER

_ERRNO = {os.strerror(number): number for number in errno.errorcode}


class Library:
    """One context of libnftables, in the netns of the thread that makes it.

    Any thread may use it then, one at a time, until `close`.
    """

    def __init__(self) -> None:
        """Start the library's thread. Raises `RulesError`: there is no nftables, or no thread."""
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str | OSError | None] = queue.SimpleQueue()
        # A new thread is in the netns of the one that starts it.
        with wrap_oserror("start a thread"):
            start_thread(threading.Thread(target=self._work, name="libnftables", daemon=True))
        self._closed = False
        failure = self._answers.get()
        if isinstance(failure, OSError):
            with wrap_oserror("open a netfilter socket"):
                raise failure

    def apply(self, text: str) -> None:
        """Hand `text` to the kernel as one transaction; nothing has changed if it raises.

        Raises `RulesError` with the reason and the statement that was refused.
        """
        assert not self._closed, "closed"  # noqa: S101 - a mistake of ours, no fault
        # Of several lines the library shows the first in an error, so it gets one.
        self._texts.put(text.replace("\n", ";").replace("\t", " "))
        refusal = self._answers.get()
        if refusal is not None:
            raise RulesError(_explain_refusal(str(refusal)))

    def close(self) -> None:
        """End the thread, and with it the library's socket. Idempotent."""
        self._closed = True
        self._texts.put(None)

    def _work(self) -> None:
        try:
            descriptors.leave_table()
            # The library itself ends the process where it can have no socket.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
        except OSError as error:
            self._answers.put(error)
            return
        library = nftables.Nftables()
        self._answers.put(None)
        while (text := self._texts.get()) is not None:
            code, _, errors = library.cmd(text)
            self._answers.put((errors or "no reason given") if code else None)
        # In this thread: to every other one, the socket's number is another descriptor.
        del library


def _explain_refusal(errors: str) -> str:
    """Make one line of the library's report: the reason, and the statement that it points to."""
    lines = [*errors.splitlines(), "", "", ""]
    reason = lines[0].rpartition(": ")[2]
    if reason in _ERRNO:
        reason = explain(_ERRNO[reason])
    place = lines[2].find("^")
    start = lines[1].rfind(";", 0, max(place, 0)) + 1
    statement = lines[1][start:].partition(";")[0].strip()
    return f"nftables refused the rules: {reason}; at: {statement}"
