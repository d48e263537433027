"""Pods that work against their node: ``python -m tests.tools.bench.neighbors KIND ARGUMENT…``.

Each kind does as much as it can be thought to do without taking the machine's whole
processor time, which no agent could mend, and says "ready" once it is at it.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import nftables

from nodeagent.linux import syscalls as kernel
from nodeagent.linux.fd_limit import raise_nofile_limit

IDLE = 1500
"""Connections that stay."""
RULES = 20_000
"""In each flooding pod."""
_EVERY = 0.01
"""Seconds between two connections, or two changes of the rules in one pod."""
_REWRITTEN = 0.1
"""Seconds between two changes of some pod's annotation."""
_ANNOTATION = 250_000
"""Bytes: what the API server lets a pod have."""
_AT_ONCE = 500


def connections(port: str) -> None:
    """Keep idle connections at the port for probes, and replace them, some in mid-request."""
    raise_nofile_limit(2 * IDLE)
    kept: deque[socket.socket] = deque()
    for number in itertools.count():
        client = socket.create_connection(("127.0.0.1", int(port)), timeout=30)
        if number % 2:
            client.send(b"GET /readyz HTTP/1.1\r\nHost: ")
        kept.append(client)
        if number == IDLE:
            print("ready", flush=True)
        if number >= IDLE:
            kept.popleft().close()
            time.sleep(_EVERY)


def flooding(*paths: str) -> None:
    """Fill the namespaces at `paths` with rules, and go on changing them."""
    filled = threading.Barrier(len(paths) + 1)
    for path in paths:
        threading.Thread(target=_change_rules, args=(path, filled), daemon=True).start()
    filled.wait()
    print("ready", flush=True)
    threading.Event().wait()


def _change_rules(path: str, filled: threading.Barrier) -> None:
    namespace = os.open(path, os.O_RDONLY)
    kernel.setns(namespace, kernel.CLONE_NEWNET)
    library = nftables.Nftables()
    _nft(library, "add table ip nat; add chain ip nat ISTIO_OUTPUT; add chain ip nat PREROUTING")
    for first in range(0, RULES, _AT_ONCE):
        marks = range(first, first + _AT_ONCE)
        _nft(
            library, "; ".join(f"add rule ip nat ISTIO_OUTPUT meta mark {n} accept" for n in marks)
        )
    filled.wait()
    while True:
        _nft(library, "add table inet own; delete table inet own")
        time.sleep(_EVERY)


def _nft(library: nftables.Nftables, command: str) -> None:
    code, _, errors = library.cmd(command)
    assert code == 0, errors


def annotations(*files: str) -> None:
    """Give the pods of the manifests `files` a huge annotation, another one each time."""
    for number in itertools.count():
        path = files[number % len(files)]
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        name = f"v{number}"
        names = ",".join(f"{name}-{n}" for n in range(_ANNOTATION // (len(name) + 6)))
        manifest["metadata"]["annotations"]["istio.io/reroute-virtual-interfaces"] = names
        draft = os.path.join(os.path.dirname(path), ".draft")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(manifest, file)
        os.rename(draft, path)
        if number == len(files):
            print("ready", flush=True)
        if number >= len(files):
            time.sleep(_REWRITTEN)


_KINDS: dict[str, Callable[..., None]] = {
    "connections": connections,
    "flooding": flooding,
    "annotations": annotations,
}

if __name__ == "__main__":
    _KINDS[sys.argv[1]](*sys.argv[2:])
