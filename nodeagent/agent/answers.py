"""What the agent answers at its admin socket about the pods of the node."""

from collections.abc import Mapping
from dataclasses import asdict

from nodeagent.admin.server import Answer
from nodeagent.agent.assembly import Assembly


def answers(node: Assembly) -> Mapping[str, Answer]:
    """Each question with what answers it; see `nodeagent.admin.server.serve_admin`."""
    table = node.reconciler.table

    async def history(uid: str) -> object:
        return [asdict(record) for record in table.history if uid in {"", record.uid}]

    return {"history": history}
