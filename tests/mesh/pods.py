"""Pods, a namespace and a sandbox for the tests of the heart, and of rooms that work with it."""

from dataclasses import replace
from ipaddress import IPv4Address

from nodeagent.mesh.pod import REDIRECTION, Namespace, Pod, PodUID
from nodeagent.mesh.progress import State
from nodeagent.mesh.sandbox import Sandbox
from tests.mesh.node import Bench

AMBIENT = {"istio.io/dataplane-mode": "ambient"}


SHOP = Namespace("shop")


ENABLED = {REDIRECTION: "enabled"}


U1 = PodUID("1")


SANDBOX = Sandbox(
    container_id="c1",
    netns="7",
    addresses=(IPv4Address("10.0.0.7"),),
    network="pods",
    interface="eth0",
)


def a_pod(uid: str = "1", **changes: object) -> Pod:
    pod = Pod(
        uid=PodUID(uid),
        name="web",
        namespace="shop",
        labels=AMBIENT,
        addresses=(IPv4Address("10.0.0.1"),),
        phase="Pending",
    )
    return replace(pod, **changes)  # type: ignore[arg-type]


async def enrolled(on: Bench, uid: str = "1") -> None:
    on.node.netns_ids.setdefault(PodUID(uid), int(uid))
    on.table.namespace_seen(SHOP)
    on.table.pod_seen(a_pod(uid))
    await on.until_state(uid, State.ENROLLED)
