"""What a running agent answers about its pods, with the real kernel."""

import asyncio
import os
from typing import Any

from nodeagent.admin.client import ask
from nodeagent.mesh.pod import NETNS_PATH
from tests.agent.processes import Node, Stub
from tests.agent.ztunnels import reconnected
from tests.eventually import PATIENCE, eventually
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.zds.model import ModelZtunnel


async def asked(node: Node, question: str, pod: Pod | None = None) -> Any:
    uid = f"uid-{pod.name}" if pod else ""
    return await asyncio.to_thread(ask, node.settings.admin_socket, question, uid=uid, seconds=60.0)


async def test_history(lab: Lab, node: Node, ztunnels: list[ModelZtunnel]) -> None:
    """Of one pod, of all, and of a pod that has gone: when it came in, and what was repaired."""
    web, db = lab.add_pod("web"), lab.add_pod("db")
    node.write(web)
    node.write(db, labels={})
    node.start()
    await reconnected(node, ztunnels)
    await node.until_state(web, "enrolled")
    await node.until_state(db, "outside")
    web.shell("nft flush ruleset")
    await node.until(web, lambda row: row["repairs"] > 0)
    (record,) = await asked(node, "history", web)
    assert (record["namespace"], record["name"]) == ("shop", "web")
    repaired = next(each for each in record["transitions"] if each["what"] == "repaired")
    assert "missing" in repaired["why"]
    node.delete(web)
    await ztunnels[-1].until(lambda: not ztunnels[-1].workloads)
    records = {each["name"]: each["transitions"] for each in await asked(node, "history")}
    assert records["web"][-1]["what"] == "gone"
    assert [each["what"] for each in records["db"]] == ["outside"]


async def test_verify(lab: Lab, node: Node) -> None:
    """A look finds what the agent has not repaired, for one pod and for all; it writes nothing."""
    web, db = lab.add_pod("web"), lab.add_pod("db")
    node.write(web)
    node.write(db, labels={})
    node.start()
    stub = await eventually_started(node)
    await node.until(web, lambda row: row["state"] == "enrolled")
    await node.until_state(db, "outside")
    found = await asked(node, "verify", web)
    assert (found["ok"], found["looked"], found["reason"]) == (
        True,
        True,
        "rules and routes are as desired, and ztunnel listens",
    )
    everything = await asked(node, "verify")
    assert everything["missing"] == []
    assert {each["name"]: each["ok"] for each in everything["pods"]} == {"web": True, "db": True}
    rules = web.shell("nft -s -a list ruleset")
    assert await asked(node, "verify", web)
    assert web.shell("nft -s -a list ruleset") == rules
    await stub.stop()
    await eventually_silent(node, web)


async def test_explain(lab: Lab, node: Node) -> None:
    """Every link of a real pod holds, each with its evidence; then ztunnel goes."""
    web, db = lab.add_pod("web"), lab.add_pod("db")
    node.write(web)
    node.write(db, labels={})
    node.start()
    stub = await eventually_started(node)
    await node.until(web, lambda row: row["state"] == "enrolled")
    await node.until_state(db, "outside")
    found = await asked(node, "explain", web)
    marks = {link["topic"]: link["mark"] for link in found["links"]}
    assert marks.pop("sandbox") == "note"  # no CNI plugin has handed it over
    assert set(marks.values()) == {"ok"}, found
    assert {"selected", "netns", "rules, routes", "ztunnel", "listeners", "probes"} < set(marks)
    (netns,) = (link for link in found["links"] if link["topic"] == "netns")
    assert netns["evidence"] == [f"{web.path}, named by the manifest (annotation {NETNS_PATH})"]
    assert (found["ok"], found["next_step"]) == (True, "nothing")
    assert found["history"][-1]["what"] == "enrolled"
    outside = await asked(node, "explain", db)
    assert (outside["ok"], outside["links"][0]["mark"]) == (True, "note")
    await stub.stop()
    await eventually_silent(node, web)
    found = await asked(node, "explain", web)
    assert not found["ok"]
    assert found["verdict"].startswith("redirected, but not served")


async def eventually_started(node: Node) -> Stub:
    await eventually(lambda: os.path.exists(node.zds))
    return Stub(node)


async def eventually_silent(node: Node, pod: Pod) -> None:
    """Wait until a look tells that nobody listens; within a second the last look counts."""
    async with asyncio.timeout(PATIENCE):
        while (found := await asked(node, "verify", pod))["silent"] != [15001, 15006, 15008, 15053]:
            pass
    assert not found["ok"]
