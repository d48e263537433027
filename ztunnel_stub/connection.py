"""One connection through the stub, as its log line tells it."""

import time
from dataclasses import dataclass, field
from enum import StrEnum

from ztunnel_stub.address import Endpoint


class Direction(StrEnum):
    """Which listener took it."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    HBONE = "hbone"
    DNS = "dns"


@dataclass(slots=True, eq=False)
class Connection:
    """Counts while it lasts."""

    direction: Direction
    source: Endpoint
    destination: Endpoint
    sent: int = 0
    """Bytes from the source to the destination."""
    received: int = 0
    """Bytes from the destination to the source."""
    started: float = field(default_factory=time.monotonic)

    def count_sent(self, size: int) -> None:
        """`size` more bytes were passed on to the destination."""
        self.sent += size

    def count_received(self, size: int) -> None:
        """`size` more bytes were passed on to the source."""
        self.received += size

    def fields(self) -> dict[str, str | int | float]:
        """For the log, once it is over. The duration is in seconds."""
        return {
            "direction": self.direction.value,
            "source": str(self.source),
            "destination": str(self.destination),
            "bytes_sent": self.sent,
            "bytes_received": self.received,
            "duration": round(time.monotonic() - self.started, 6),
        }
