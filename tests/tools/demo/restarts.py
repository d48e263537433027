"""The part of the story in which both programs restart while traffic flows."""

import signal
import time
from itertools import zip_longest

from tests.tools.demo.node import DRAIN, Node, ruleset
from tests.tools.demo.programs import Program, settled
from tests.tools.demo.screen import Screen
from tests.tools.demo.traffic import LongLived, Stream

_ENOUGH = 25
"""Connections of the stream, half a second of it, that are worth a claim."""


async def restarts(screen: Screen, node: Node, agent: Program, stub: Program) -> Program:
    """Restart the stub as a rolling update does, kill the agent; the stub that runs then."""
    stream = Stream(node.client, node.server.addresses)
    async with stream.flowing():
        stub = await _restart_stub(screen, node, stream, stub)
        # Opened now: what the old stub carried ended with it.
        async with LongLived().open(node.client, node.server.v4) as talk:
            await _kill_agent(screen, node, stream, talk, agent)
    screen.claim(
        f"in all: {stream.tally}; the slowest took {stream.slowest * 1000:.0f} ms",
        holds=stream.tally.made > 0 and stream.tally.failed == 0,
        seen=_told(stream),
    )
    return stub


async def _restart_stub(screen: Screen, node: Node, stream: Stream, old: Program) -> Program:
    async with LongLived().open(node.client, node.server.v4) as talk:
        await stream.more(_ENOUGH)
        before = stream.tally
        new = await node.start_stub()
        told = time.monotonic()
        status = await old.end(signal.SIGTERM)
        await stream.more(_ENOUGH)
        during = stream.tally - before
        screen.claim(
            f"the stub restarted, the new one first, then SIGTERM to the old: {during}",
            holds=status == 0 and during.failed == 0,
            seen=f"the old stub ended with {status}; {_told(stream)}",
        )
        ended = await settled(lambda: talk.broken is not None)
        lasted = talk.ended - told
        screen.claim(
            f"a connection that was open through the old stub was cut {lasted:.1f} s later, when"
            f" its drain ({DRAIN:.0f} s) was over",
            holds=ended and lasted >= 0.9 * DRAIN,
            seen=f"cut after {lasted:.1f} s: {talk.broken}" if ended else "it goes on",
        )
    return new


async def _kill_agent(
    screen: Screen, node: Node, stream: Stream, talk: LongLived, agent: Program
) -> None:
    enrolled = (node.client, node.server)
    rules = "".join(map(ruleset, enrolled))
    before = stream.tally
    status = await agent.end(signal.SIGKILL)
    await stream.more(_ENOUGH)
    without = stream.tally - before
    screen.claim(
        f"the agent killed with SIGKILL; while there is none: {without}",
        holds=status == -signal.SIGKILL and without.failed == 0,
        seen=f"the agent ended with {status}; {_told(stream)}",
    )
    await node.start_agent()
    states = await node.until_states(client="enrolled", server="enrolled", outsider="outside")
    await stream.more(_ENOUGH)
    screen.claim(
        "the agent started again: client and server enrolled, outsider outside, as before",
        holds=states == {"client": "enrolled", "server": "enrolled", "outsider": "outside"},
        seen=str(states),
    )
    after = "".join(map(ruleset, enrolled))
    screen.claim(
        f"their rules were not touched: nft's listing, {len(rules)} bytes with the"
        " handles, is the same as before",
        holds=rules != "" and rules == after,
        seen=_difference(rules, after),
    )
    exchanged = talk.exchanged
    await settled(lambda: talk.broken is not None or talk.exchanged > exchanged)
    screen.claim(
        f"the long-lived connection is still open, {talk.exchanged} lines so far",
        holds=talk.broken is None and talk.exchanged > exchanged,
        seen=talk.broken or "it says nothing any more",
    )


def _difference(before: str, after: str) -> str:
    pairs = zip_longest(before.splitlines(), after.splitlines(), fillvalue="nothing")
    return next((f"{old} became {new}" for old, new in pairs if old != new), "no rules")


def _told(stream: Stream) -> str:
    return f"failed: {', '.join(sorted(set(stream.failures))) or 'none'}"
