"""One connection from pod to pod, and everything that was seen of it."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.apps import IPAddress, conversation
from tests.lab.counters import counters
from tests.lab.pod import Pod
from tests.tools.demo.node import PORT, Node
from tests.tools.demo.programs import Line, settled
from tests.tools.demo.screen import Screen

OUTBOUND = "redirect to :15001"
INBOUND = "redirect to :15006"

"""Seconds; the stub writes its line when the connection ends."""


@dataclass(frozen=True, slots=True)
class Trip:
    """What `travel` saw."""

    client: tuple[str, int]
    """The client's own address and port, as it sees them itself."""
    seen: tuple[str, int]
    """The same, as the app saw them."""
    lines: tuple[Line, ...]
    """What the stub wrote."""
    moved: tuple[tuple[str, str, int, int], ...]
    """Each redirecting rule that matched: pod, rule, and packets before and after."""

    @property
    def direct(self) -> bool:
        """Nobody stood between: a proxy's connection to the app has a port of its own."""
        return self.client == self.seen and not self.lines and not self.moved

    @property
    def inbound_only(self) -> bool:
        """It left the client's pod as it was, and was taken in at the server's."""
        return (
            [line["direction"] for line in self.lines] == ["inbound"]
            and self.lines[0]["source"] == _shown(*self.client)
            and [rule[0] for rule in self.moved] == [self.lines[0]["pod"].removeprefix("shop/")]
        )

    def __str__(self) -> str:
        rules = [f"{pod}: {rule}" for pod, rule, _, _ in self.moved]
        stub = [f"{line['direction']} in {line['pod']}" for line in self.lines]
        return (
            f"the client is {_shown(*self.client)}, the app saw {_shown(*self.seen)};"
            f" rules that matched: {', '.join(rules) or 'none'};"
            f" the stub wrote: {', '.join(stub) or 'nothing'}"
        )


async def travel(node: Node, source: Pod, address: IPAddress, *, lines: int) -> Trip:
    """Dial from `source`, exchange a line, hang up, and wait for the stub's `lines`.

    Raises ``OSError``, ``EOFError`` where there is no connection.
    """
    written = len(node.connections())
    before = _redirects(node)
    async with conversation(source, address, PORT) as talk:
        await talk.echo("hello")
        client, seen = talk.local, (str(talk.source), int(talk.greeting[2]))
    await settled(lambda: len(node.connections()) >= written + lines)
    return Trip(
        client=client,
        seen=seen,
        lines=tuple(node.connections()[written:]),
        moved=tuple(_moved(before, _redirects(node))),
    )


def show_redirect(screen: Screen, trip: Trip, pod: Pod, *, direction: str, verdict: str) -> None:
    """Claim that `pod`'s rule with `verdict` sent the connection to the stub."""
    rule = next((r for r in trip.moved if r[0] == pod.name and r[1].endswith(verdict)), None)
    line = next(
        (n for n in trip.lines if (n["direction"], n["pod"]) == (direction, f"shop/{pod.name}")),
        None,
    )
    text = f"{pod.name}, {direction}"
    screen.claim(
        f"{text}: rule  {rule[1]}  {rule[2]} → {rule[3]}" if rule else f"{text}: a rule matched",
        holds=rule is not None,
        seen=str(trip),
    )
    screen.claim(
        f"{text}: stub  {line['source']} → {line['destination']}, {line['bytes_sent']}"
        f" + {line['bytes_received']} bytes, {line['duration'] * 1000:.0f} ms"
        if line
        else f"{text}: the stub has passed it on",
        holds=line is not None and line.get("error") is None,
        seen=str(line or trip),
    )


def _redirects(node: Node) -> dict[tuple[str, str], int]:
    return {
        (pod.name, rule): packets
        for pod in node.pods
        for rule, packets in counters(pod).items()
        if "redirect to" in rule
    }


def _moved(
    before: dict[tuple[str, str], int], after: dict[tuple[str, str], int]
) -> Iterator[tuple[str, str, int, int]]:
    for (pod, rule), packets in after.items():
        earlier = before.get((pod, rule), 0)
        if packets > earlier:
            yield pod, _short(rule), earlier, packets


def _short(rule: str) -> str:
    """The chain, the first condition and the verdict."""
    chain, _, text = rule.partition(": ")
    condition, verdict = text.split()[:2], text[text.index("redirect to") :]
    return f"{chain}: {' '.join(condition)} … {verdict}"


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
