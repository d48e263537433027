"""What a running agent answers about its pods, with the real kernel."""

import asyncio
from typing import Any

from nodeagent.admin.client import ask
from tests.agent.processes import Node
from tests.agent.ztunnels import reconnected
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
