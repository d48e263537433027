"""What one pod costs the host's set for health probes, with many others in it."""

import asyncio
import contextlib
import time
from collections import defaultdict
from ipaddress import IPv4Address

from nodeagent.mesh.pod import PodUID
from nodeagent.netns.threads import NetnsThreads
from tests.lab.host import enrolled, new_host, probes_of
from tests.tools.bench.report import Figure, median, milliseconds

_ROUNDS = 50
_FIRST = IPv4Address("10.2.0.1")


def figures(present: int) -> list[Figure]:
    """Add, look at and remove one pod among `present`."""
    times = asyncio.run(_measure(present))
    return [
        Figure(what=f"host probe set, {present:,} addresses: {what}", value=milliseconds(taken))
        for what, taken in times.items()
    ]


async def _measure(present: int) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    with contextlib.closing(NetnsThreads(1)) as threads, new_host() as host:
        async with probes_of(host, threads) as probes:
            for number in range(present):
                await probes.ensure(enrolled(f"uid-{number}", _FIRST + number))
            pod = enrolled("one", _FIRST + present)
            for _ in range(_ROUNDS):
                for what, work in (
                    ("one added", probes.ensure(pod)),
                    ("one unchanged", probes.ensure(pod)),
                    ("one removed", probes.remove(PodUID("one"))),
                ):
                    started = time.perf_counter()
                    await work
                    times[what].append(time.perf_counter() - started)
    return {what: median(taken) for what, taken in times.items()}
