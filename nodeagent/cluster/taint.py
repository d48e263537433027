"""The start-up taint: it keeps pods off a new node until its agent is ready (L19)."""

import asyncio
from urllib.parse import quote

import structlog

from nodeagent.cluster import projection
from nodeagent.cluster.api import ApiError, ApiServer
from nodeagent.cluster.projection import ProjectionError
from nodeagent.mesh.backoff import Backoff

log = structlog.get_logger()

_SOON = 0.1
_LONGEST = 30.0


async def remove_taint(api: ApiServer, node_name: str, key: str) -> bool:
    """Take the taint off our own node, whatever its value and effect; try until it is off.

    Returns whether it stood. Once for each start of the agent is enough: where a node is
    registered anew, its agent's pod is a new one too.
    """
    path = f"/api/v1/nodes/{quote(node_name, safe='')}"
    backoff = Backoff(longest=_LONGEST)
    trouble: object = ()
    while True:
        try:
            stood = await _attempt(api, path, key)
        except ApiError as error:
            # A conflict is ordinary: kubelet and controllers write to the node as well.
            if not error.conflict and error.status != trouble:
                trouble = error.status
                needs = {"needs": "verbs get and patch on nodes"} if error.denied else {}
                log.warning("taint not removed yet", key=key, error=str(error), **needs)
            await asyncio.sleep(max(backoff.delay(), error.retry_after or 0, _SOON))
        else:
            if stood:
                log.info("taint removed", node=node_name, key=key)
            return stood


async def _attempt(api: ApiServer, path: str, key: str) -> bool:
    node = await api.get(path)
    try:
        taints, version = projection.taints(node), projection.version(node)
    except ProjectionError as error:
        raise ApiError(f"the node is odd: {error}") from error
    others = [taint for taint in taints if taint.get("key") != key]
    if len(others) == len(taints):
        return False
    # With the version: a merge patch replaces the list, and somebody else's taint in it.
    patch = {"metadata": {"resourceVersion": version}, "spec": {"taints": others}}
    await api.patch(path, patch)
    return True
