"""`make demo`, as a person runs it. Needs: the sandbox of tests/sandbox.py, and `ip`."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.eventually import PATIENCE, eventually

_MARK = "NODEAGENT_TEST_DEMO"


class Demo:
    """The running demo, and what it has started."""

    def __init__(self, process: Process, mark: str) -> None:
        self.process = process
        self._mark = f"{_MARK}={mark}".encode()

    async def printed(self, text: str) -> None:
        """Wait for a line with `text`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while text not in (line := await self.process.stdout.readline()).decode():
                assert line, f"it ended before it printed {text!r}"

    async def ended(self) -> tuple[int | None, str, str]:
        """Its status, and the rest of what it wrote."""
        async with asyncio.timeout(PATIENCE):
            output, errors = await self.process.communicate()
        return self.process.returncode, output.decode(), errors.decode()

    def processes(self) -> set[int]:
        """All that has the mark in its environment, which every child inherits."""
        found = set()
        for number in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{number}/environ", "rb") as file:
                if self._mark in file.read().split(b"\0"):
                    found.add(int(number))
        return found

    def namespaces(self) -> set[str]:
        """The network and mount namespaces that its processes are in, but not we."""
        own = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")}
        found = set()
        for number in self.processes():
            for kind in ("net", "mnt"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{number}/ns/{kind}"))
        return found - own


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    """The demo, just started; afterwards nothing of it may be left."""
    mark = uuid.uuid4().hex
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.tools.demo",
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, _MARK: mark, "TMPDIR": str(tmp_path)},
    )
    started = Demo(process, mark)
    try:
        yield started
        await eventually(lambda: not started.processes())
        # Other tests' pods are mounted here too, but not those in a directory of the demo.
        mounts = Path("/proc/self/mountinfo").read_text()
        assert "tmpfs demo" not in mounts
        assert "/run/lab-" not in mounts
        assert not list(tmp_path.iterdir())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_every_claim_is_observed(demo: Demo) -> None:
    """It ends with status 0, says of nothing that it failed, and leaves nothing behind."""
    status, output, errors = await demo.ended()
    assert (status, errors) == (0, ""), output
    assert "✗" not in output
    assert "\x1b" not in output
    assert output.count("✓") > 20
    assert len(output.splitlines()) <= 60


async def test_ctrl_c_in_the_middle_cleans_up(demo: Demo) -> None:
    """While agent, stub and traffic run; the status is the one that a shell expects."""
    await demo.printed("Restarts")
    assert len(demo.processes()) > 4
    assert len(demo.namespaces()) >= 2
    demo.process.send_signal(signal.SIGINT)
    status, output, errors = await demo.ended()
    assert (status, errors) == (130, "interrupted; everything is cleaned up\n")
    assert "✗" not in output


async def test_nothing_outlives_a_killed_demo(demo: Demo) -> None:
    """SIGKILL leaves it no time to clean up; the kernel does that."""
    await demo.printed("Restarts")
    assert len(demo.processes()) > 4
    demo.process.kill()  # and the fixture looks what is left
    _, output, _ = await demo.ended()
    assert "claims observed" not in output, "it went on to its end"


async def test_what_is_not_observed_is_told_and_is_status_1() -> None:
    """With a cross and what was seen instead; the story is told as far as it goes."""
    false = (
        "import sys; from tests.tools.demo import inside;"
        " sys.executable = '/bin/false'; sys.exit(inside.main())"
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--map-root-user", "--net", "--mount"),
        *(sys.executable, "-c", false),
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdout is not None
    output = (await process.stdout.read()).decode()
    assert await process.wait() == 1
    assert "✗ the story can be told to its end\n      seen instead: nodeagent does not" in output
    assert "2 claims observed, 1 not" in output


async def test_missing_programs_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    """Named by their packages, before anything is started."""
    errors = await refused(sys.executable, "-m", "tests.tools.demo", path=str(tmp_path))
    assert errors == (
        "tests.tools.demo: missing: mount util-linux;"
        " install with: sudo apt-get install -y mount util-linux\n"
    )


async def test_forbidden_namespaces_are_one_line_with_the_remedy() -> None:
    """With what the system said, and who knows what to change."""
    forbid = (
        "echo 0 >/proc/sys/user/max_user_namespaces &&"
        ' exec setpriv --bounding-set=-sys_admin "$0" -m tests.tools.demo'
    )
    errors = await refused(
        "unshare", "--user", "--map-root-user", "sh", "-c", forbid, sys.executable
    )
    assert errors.startswith("tests.tools.demo: namespaces are forbidden here (unshare: ")
    assert errors.endswith("); the remedy is told by: deploy/setup demo\n")
    assert len(errors.splitlines()) == 1


async def refused(*command: str, path: str | None = None) -> str:
    """Run a demo that cannot start; its complaint."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
    )
    output, errors = await process.communicate()
    assert (process.returncode, output) == (1, b"")
    return errors.decode()
