"""When the API server said what: a watch as bare as one can be, beside the agent's."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from nodeagent.mesh.pod import REDIRECTION
from tests.cluster.control_plane import ControlPlane
from tests.eventually import PATIENCE

MODE = "istio.io/dataplane-mode"
AMBIENT = "ambient"


class Watch:
    """Notes when it first heard of a label or an annotation; times are ``perf_counter``'s."""

    def __init__(self, plane: ControlPlane, resource: str, **selector: str) -> None:
        self._first: dict[tuple[str, str, str | None], float] = {}
        self._stirred = threading.Condition()
        trusted = ssl.create_default_context(cafile=str(plane.ca))
        self._connection = http.client.HTTPSConnection("127.0.0.1", plane.port, context=trusted)
        headers = {"Authorization": f"Bearer {plane.admin_token}"}
        query = urlencode({"watch": "1", "resourceVersion": "0", **selector})
        self._connection.request("GET", f"/api/v1/{resource}?{query}", headers=headers)
        self._socket = self._connection.sock
        self._answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._listen, name=f"watch of {resource}")
        self._thread.start()

    def forget(self) -> None:
        """What is asked for from now on is to be heard anew."""
        with self._stirred:
            self._first.clear()

    def labeled(self, names: Iterable[str], mode: str | None) -> dict[str, float]:
        """Wait until all `names` have had this mode; when that was heard, by name."""
        return self._heard(names, MODE, mode)

    def annotated(self, names: Iterable[str], value: str | None) -> dict[str, float]:
        """Wait until all `names` have had this redirection; when that was heard, by name."""
        return self._heard(names, REDIRECTION, value)

    def _heard(self, names: Iterable[str], key: str, value: str | None) -> dict[str, float]:
        wanted = {name: (name, key, value) for name in names}
        with self._stirred:
            if not self._stirred.wait_for(
                lambda: self._first.keys() >= set(wanted.values()), PATIENCE
            ):
                raise RuntimeError(f"never heard that {key} is {value} everywhere")
            return {name: self._first[change] for name, change in wanted.items()}

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while line := self._answer.readline():
                now = time.perf_counter()
                metadata = json.loads(line)["object"]["metadata"]
                name = metadata["name"]
                mode = metadata.get("labels", {}).get(MODE)
                redirection = metadata.get("annotations", {}).get(REDIRECTION)
                with self._stirred:
                    self._first.setdefault((name, MODE, mode), now)
                    self._first.setdefault((name, REDIRECTION, redirection), now)
                    self._stirred.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._answer.close()
        self._connection.close()
