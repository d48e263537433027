"""The command ``ztunnel-stub``: no logic."""

import asyncio
import sys

from nodeagent import log
from ztunnel_stub import settings, stub


def main() -> None:
    """Run until SIGTERM or SIGINT; status 0 then, 1 where the stub cannot run at all."""
    chosen = settings.parse()
    log.configure(chosen.log_level, chosen.log_format)
    try:
        asyncio.run(stub.run(chosen))
    except stub.StartError as error:
        sys.exit(f"ztunnel-stub: {error}")
