"""``python -m tests.tools.demo.inside``: the demo itself, in the namespaces made for it."""

import asyncio
import io
import subprocess
import sys
import tempfile
import time

from tests.tools.demo.node import build
from tests.tools.demo.screen import Screen
from tests.tools.demo.story import tell

_DIRECTORY = "/run"
"""Where a file system in memory is mounted; it goes with the mount namespace."""
_INTERRUPTED = 130
"""Exit status, as a shell has it after Ctrl-C."""


def main() -> int:
    """Tell the story until standard input ends; the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    mount = ["mount", "-t", "tmpfs", "-o", "mode=0700", "demo", _DIRECTORY]
    if subprocess.run(mount, check=False).returncode != 0:  # it has said why
        return 1
    tempfile.tempdir = _DIRECTORY
    try:
        return asyncio.run(_run())
    except asyncio.CancelledError:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        return _INTERRUPTED


async def _run() -> int:
    started = time.monotonic()
    story = asyncio.current_task()
    assert story is not None
    lifeline = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(lifeline)  # its end can be read for ever, and once is enough
        story.cancel()

    loop.add_reader(lifeline, stop)
    screen = Screen()
    try:
        async with build(_DIRECTORY) as node:
            await tell(screen, node)
    except (OSError, subprocess.CalledProcessError) as error:
        screen.claim("the story can be told to its end", holds=False, seen=str(error))
    screen.end(time.monotonic() - started)
    return 1 if screen.broken else 0


if __name__ == "__main__":
    sys.exit(main())
