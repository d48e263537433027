"""The start-up taint, which keeps pods off a new node until its agent is ready.

Without it, pods that are scheduled before the CNI plugin is installed would start outside
of the mesh.
"""

from functools import partial
from urllib.parse import quote

import structlog

from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.projection import ProjectionError
from nodeagent.cluster.retried import retried

log = structlog.get_logger()

_LONGEST_PAUSE = 30.0
"""Seconds between two attempts."""


async def remove_taint(api: ApiServer, node_name: str, key: str) -> bool:
    """Remove the taint `key` from the agent's own node, whatever its value and effect.

    Tries until that has succeeded; returns whether the node had the taint. Once for each
    start of the agent is enough: where a node is registered anew, its agent's pod is a new
    one too.
    """

    def warn(error: ApiError) -> None:
        needs = {"needs": "verbs get and patch on nodes"} if error.denied else {}
        log.warning("taint not removed yet", key=key, error=str(error), **needs)

    path = f"/api/v1/nodes/{quote(node_name, safe='')}"
    removed = await retried(partial(_attempt, api, path, key), longest=_LONGEST_PAUSE, warn=warn)
    if removed:
        log.info("taint removed", node=node_name, key=key)
    return removed


async def _attempt(api: ApiServer, path: str, key: str) -> bool:
    node = await api.get(path)
    try:
        taints, version = projection.taints(node), projection.version(node)
    except ProjectionError as error:
        raise ApiError(f"the node is odd: {error}") from error
    others = [taint for taint in taints if taint.get("key") != key]
    if len(others) == len(taints):
        return False
    # A merge patch replaces the whole list. The version makes the server refuse the patch
    # where somebody has added another taint meanwhile.
    patch = {"metadata": {"resourceVersion": version}, "spec": {"taints": others}}
    await api.patch(path, patch)
    return True
