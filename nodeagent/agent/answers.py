"""What the agent answers at its admin socket about the pods of the node."""

from collections.abc import Mapping
from dataclasses import asdict

from nodeagent.admin.server import Answer, Missing
from nodeagent.agent.assembly import Assembly
from nodeagent.mesh.explanation import Explainer, Explanation
from nodeagent.mesh.pod import PodUID
from nodeagent.mesh.verification import Verifications


def answers(node: Assembly, missing: Missing) -> Mapping[str, Answer]:
    """Each question with what answers it; see `nodeagent.admin.server.serve_admin`.

    `missing`: what the agent still waits for, and without which it may not know every pod.
    """
    table = node.reconciler.table
    verifications = Verifications(table, node.redirector)
    explainer = Explainer(
        table,
        verifications,
        netns_finder=node.origin.netns_finder,
        ztunnels=node.ztunnels,
        probes=node.probes,
        reporter=node.origin.reporter,
    )

    async def history(uid: str) -> object:
        return [asdict(record) for record in table.history if uid in {"", record.uid}]

    async def verify(uid: str) -> object:
        if not uid:
            pods = [asdict(each) for each in await verifications.all()]
            return {"pods": pods, "missing": list(missing())}
        workload = table.get(PodUID(uid))
        return workload and asdict(await verifications.of(workload))

    async def explain(uid: str) -> object:
        workload = table.get(PodUID(uid))
        return workload and _json(await explainer.of(workload))

    return {"history": history, "verify": verify, "explain": explain}


def _json(explanation: Explanation) -> object:
    return asdict(explanation) | {
        "links": [asdict(link) | {"mark": link.mark.value} for link in explanation.links]
    }
