"""Keeps our plugin in the node's CNI chain for as long as the agent runs.

The installer watches the binary's and the configuration's directory with inotify, and asks the
container runtime now and then which configurations it loads. On any news, and when something is
due, a `Repairer` goes over the directories once, in a thread.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from nodeagent.cni.install.loading import Loading
from nodeagent.cni.install.plan import Placement
from nodeagent.cni.install.repair import PassResult, Repairer
from nodeagent.linux.directory_watch import FolderLostError, FolderWatch

ASK_AGAIN, ASK_SOON = 60.0, 5.0
"""Seconds until the container runtime is asked again; the second where it did not answer."""
_RETRY = 1.0
"""Seconds until a directory that cannot be watched is tried again."""
_SETTLE = 0.02
"""Seconds in which what one writer does to several files comes together."""


class Installer:
    """Puts binary and entry in their places, and back whenever somebody takes them away.

    When the installer is cancelled, everything stays where it is, for the agent that comes
    next (L17); `uninstall` takes it out.
    """

    def __init__(
        self,
        repairer: Repairer,
        *,
        placement: Placement,
        loading: Callable[[], Awaitable[Loading]],
        on_attempt: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`loading` asks the container runtime, and does not raise where it cannot be asked.

        `on_attempt` is told of each installation that succeeds (True) or fails.
        """
        self.installed = asyncio.Event()
        """Set once binary and configuration are in place."""
        self.passes = 0
        """How often the directories were gone over: a change before a pass began is in it."""
        self.in_place = False
        """Whether all was in place when the directories were gone over last."""
        self._on_attempt = on_attempt
        self._repairer = repairer
        self._placement = placement
        self._ask = loading
        self._wakeup = asyncio.Event()

    async def run(self) -> None:
        """Install, and keep it so, for ever. What is in the way is said once, and retried."""
        async with asyncio.TaskGroup() as tasks:
            if self._placement.chained and self._placement.own_file is not None:
                await self._ask_runtime()
                tasks.create_task(self._keep_asking(), name="ask the container runtime")
            for path in self._repairer.directories:
                tasks.create_task(self._watch(path), name=f"watch {path}")
            while True:
                self._wakeup.clear()
                result = await self._go_over()
                self.passes += 1
                if result.failed or (result.installed and not self.in_place):
                    self._on_attempt(result.installed)
                self.in_place = result.installed
                if result.installed:
                    self.installed.set()
                await self._until_due(result)

    async def _go_over(self) -> PassResult:
        problems = self._repairer.problems
        try:
            result = await _finished(asyncio.to_thread(self._repairer.go_over, self._placement))
        except OSError as error:  # of the thread: a pass says by its result what it meets
            problems.met("thread", f"no thread can be started: {error.strerror}")
            return PassResult(installed=False, again_in=_RETRY, failed=True)
        problems.solved("thread")
        return result

    async def _until_due(self, result: PassResult) -> None:
        if result.failed and result.again_in is not None:
            # What changes meanwhile may be the failed attempt itself.
            await asyncio.sleep(result.again_in)
            return
        try:
            async with asyncio.timeout(result.again_in):
                await self._wakeup.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_SETTLE)

    async def _keep_asking(self) -> None:
        while True:
            known = self._placement.loading.most is not None
            await asyncio.sleep(ASK_AGAIN if known else ASK_SOON)
            if await self._ask_runtime():
                self._wakeup.set()

    async def _ask_runtime(self) -> bool:
        """Take the container runtime's answer over; return whether the answer is a new one."""
        before, told = self._placement.loading, await self._ask()
        if told.most is None and before.most is not None:
            return False  # it restarts, and what it said holds
        self._placement = replace(self._placement, loading=told)
        return told != before

    async def _watch(self, path: str) -> None:
        problems = self._repairer.problems
        while True:
            try:
                with FolderWatch(path, self._repairer.root) as watch:
                    problems.solved(f"watch {path}")
                    while True:
                        self._wakeup.set()
                        await watch.changed()
            except (FileNotFoundError, NotADirectoryError):
                pass  # the next pass finds that, too, and says so
            except FolderLostError:
                self._wakeup.set()
                continue
            except OSError as error:
                problems.met(f"watch {path}", f"{path} cannot be watched: {error.strerror}")
            await asyncio.sleep(_RETRY)
            self._wakeup.set()


async def _finished(going_over: Awaitable[PassResult]) -> PassResult:
    """Wait for a pass even when cancelled: an uninstallation must not meet one at work."""
    task = asyncio.ensure_future(going_over)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
