"""Programs from exec to exit, as cheaply as a runtime can start them, alone and in crowds."""

import contextlib
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nodeagent.cni.install.binary import packaged_binary
from tests.tools.bench.node import Pod

TRUE = "/bin/true"
_NETWORK = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A program with what it is given."""

    program: str
    environment: dict[str, str]
    stdin: bytes

    @classmethod
    def add(cls, pod: Pod, namespace: str, plugin: str) -> "Call":
        """ADD of the pod's sandbox by the binary; `plugin` is the agent's socket."""
        previous = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": pod.path}],
            "ips": [{"address": f"{pod.address}/16", "interface": 0}],
        }
        configuration = {
            "cniVersion": "1.0.0",
            "name": _NETWORK,
            "type": "nodeagent",
            "socket": plugin,
            "letThrough": {"namespaces": ["kube-system"]},
            "prevResult": previous,
        }
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": namespace,
            "K8S_POD_NAME": pod.name,
            "K8S_POD_INFRA_CONTAINER_ID": f"sandbox-{pod.number}",
            "K8S_POD_UID": pod.uid(),
        }
        return cls(
            program=packaged_binary(),
            environment={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": f"sandbox-{pod.number}",
                "CNI_NETNS": pod.path,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
            },
            stdin=json.dumps(configuration).encode(),
        )

    @classmethod
    def true(cls) -> "Call":
        """What does nothing: the price of a process."""
        return cls(program=TRUE, environment={}, stdin=b"")


def alone(calls: Sequence[Call]) -> list[float]:
    """Seconds that each takes from exec to exit, one after the other."""
    return [time for call in calls for time in at_once([call])]


def at_once(calls: Sequence[Call]) -> list[float]:
    """Seconds that each takes from exec to exit, all started without waiting.

    Raises ``RuntimeError`` with what the program said where one fails.
    """
    started: dict[int, tuple[float, Call]] = {}
    taken = []
    with contextlib.ExitStack() as opened:
        output = opened.enter_context(tempfile.TemporaryFile())
        inputs = [opened.enter_context(_input(call.stdin)) for call in calls]
        for call, given in zip(calls, inputs, strict=True):
            files = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
            begun = time.perf_counter()
            pid = os.posix_spawn(call.program, [call.program], call.environment, file_actions=files)
            started[pid] = begun, call
        failures = 0
        while started:
            pid, status = os.wait()
            if pid in started:
                begun, call = started.pop(pid)
                taken.append(time.perf_counter() - begun)
                failures += status != 0
        if failures:
            output.seek(0)
            raise RuntimeError(f"{failures} of {len(calls)} failed: {output.read(2000)!r}")
    return taken


@contextlib.contextmanager
def _input(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("stdin")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def bare_server(path: str) -> Iterator[None]:
    """Answer every call at once, as an agent would that has nothing to do for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener,), name="bare server")
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            os.unlink(path)


def _serve(listener: socket.socket) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                received = bytearray()
                while not _is_whole(received):
                    received += connection.recv(1 << 16)
                connection.sendall(answer)


def _is_whole(request: bytearray) -> bool:
    head, found, body = bytes(request).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
    return bool(found) and length is not None and len(body) >= int(length[1])
