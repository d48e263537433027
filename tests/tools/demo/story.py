"""The story, part by part."""

import signal

from tests.tools.demo.node import Node, ruleset
from tests.tools.demo.programs import Program
from tests.tools.demo.restarts import restarts
from tests.tools.demo.screen import Screen
from tests.tools.demo.trip import INBOUND, OUTBOUND, show_redirect, travel


async def tell(screen: Screen, node: Node) -> None:
    """Tell all of it. Raises ``OSError`` where nothing can follow any more."""
    with screen.part("Three pods and no agent"):
        await _before(screen, node)
    screen.heading("The agent and a ztunnel (the stub) start; client and server have the label")
    node.write_namespace()
    for pod in node.pods:
        node.write(pod, labeled=pod is not node.outsider)
    agent = await node.start_agent()
    stub = await node.start_stub()
    await _enrolled(screen, node)
    with screen.part("Traffic takes the new way"):
        await _redirected(screen, node)
    with screen.part("The label comes off the client"):
        await _label_off_and_on(screen, node)
    with screen.part("Restarts, while 50 connections a second go from client to server"):
        stub = await restarts(screen, node, agent, stub)
    with screen.part("No ztunnel at all"):
        await _closed(screen, node, stub)


async def _before(screen: Screen, node: Node) -> None:
    for pod in node.pods:
        screen.remark(f"{pod.name:<8}  {'  '.join(map(str, pod.addresses))}")
    for address in node.server.addresses:
        trip = await travel(node, node.client, address, lines=0)
        screen.claim(
            f"client → server, IPv{address.version}: direct; the server sees {trip.seen[0]}"
            f" port {trip.seen[1]}, the client's own",
            holds=trip.direct,
            seen=str(trip),
        )


async def _enrolled(screen: Screen, node: Node) -> None:
    await node.until_states(client="enrolled", server="enrolled", outsider="outside")
    rows = await node.status()
    for pod, state in ((node.client, "enrolled"), (node.server, "enrolled")):
        row = rows[pod.name]
        screen.claim(
            f"nodeagent status: {pod.name} is {row['state']}, because: {row['reason']}",
            holds=row["state"] == state,
            seen=f"{row['state']}: {row['detail']}",
        )
    row = rows["outsider"]
    screen.claim(
        f"nodeagent status: outsider is {row['state']}, because: {row['reason']}",
        holds=row["state"] == "outside" and not ruleset(node.outsider),
        seen=f"{row['state']}: {row['detail']}",
    )


async def _redirected(screen: Screen, node: Node) -> None:
    for address in node.server.addresses:
        screen.remark(f"client → server, IPv{address.version}")
        trip = await travel(node, node.client, address, lines=2)
        show_redirect(screen, trip, node.client, direction="outbound", verdict=OUTBOUND)
        show_redirect(screen, trip, node.server, direction="inbound", verdict=INBOUND)
        own = str(node.client.addresses[(4, 6).index(address.version)])
        screen.claim(
            f"the server still sees {own}, the client's own address",
            holds=trip.seen[0] == own,
            seen=str(trip),
        )
    screen.remark("outsider → server")
    trip = await travel(node, node.outsider, node.server.v4, lines=1)
    show_redirect(screen, trip, node.server, direction="inbound", verdict=INBOUND)
    screen.claim(
        "nothing was redirected on the outsider's own side",
        holds=trip.inbound_only,
        seen=str(trip),
    )


async def _label_off_and_on(screen: Screen, node: Node) -> None:
    node.write(node.client, labeled=False)
    await node.until_states(client="outside")
    row = (await node.status())["client"]
    screen.claim(
        f"nodeagent status: client is {row['state']}, because: {row['reason']}",
        holds=row["state"] == "outside",
        seen=f"{row['state']}: {row['detail']}",
    )
    left = ruleset(node.client)
    screen.claim("its rules are gone: nftables lists nothing", holds=not left, seen=left)
    trip = await travel(node, node.client, node.outsider.v4, lines=0)
    screen.claim(
        f"client → outsider: direct; the outsider sees the client's own port {trip.seen[1]}",
        holds=trip.direct,
        seen=str(trip),
    )
    trip = await travel(node, node.client, node.server.v4, lines=1)
    screen.claim(
        "client → server: leaves directly, and is redirected on the server's side only",
        holds=trip.inbound_only,
        seen=str(trip),
    )
    node.write(node.client, labeled=True)
    await node.until_states(client="enrolled")
    trip = await travel(node, node.client, node.outsider.v4, lines=1)
    screen.claim(
        "label on again; client → outsider: outbound through the stub",
        holds=[line["direction"] for line in trip.lines] == ["outbound"],
        seen=str(trip),
    )


async def _closed(screen: Screen, node: Node, stub: Program) -> None:
    await stub.end(signal.SIGTERM)
    greeted = node.greeted()
    try:
        seen = f"a connection: {await travel(node, node.client, node.outsider.v4, lines=0)}"
    except ConnectionRefusedError:
        seen = ""
    screen.claim(
        "client → outsider is refused: a pod in the mesh fails closed, nothing leaves unredirected",
        holds=not seen and node.greeted() == greeted,
        seen=seen or "the outsider had a connection",
    )
