"""The CNI project's own library, the binary and the agent's plugin server, in each version.

Needs Go; left out without it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cni.chains import VERSIONS, WITH_CHECK, WITH_STATUS, attachment_of
from tests.cni.container_runtime import known, serving
from tests.cni.libcni import CniError, Libcni
from tests.eventually import eventually
from tests.mesh.node import Node

WEB = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web", "K8S_POD_UID": "1"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_life_of_a_sandbox(
    libcni: Callable[..., Libcni],
    plugins: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
    tmp_path: Path,
    version: str,
) -> None:
    """ADD puts it into the mesh, CHECK sees what differs, GC and DEL let it go."""
    run_dir = tmp_path / "run"
    async with serving(run_dir) as agent:
        known(agent)
        runtime, chain = libcni(plugins), fixed(version, run_dir / "pluginevent.sock")
        sandbox = attachment_of(WEB, netns="/run/netns/1")
        result = await runtime.add(chain, sandbox)
        assert (result["cniVersion"], result["ips"][0]["address"]) == (version, "10.0.0.7/24")
        assert agent.on.node.ztunnel == {"1": 1}
        if version in WITH_CHECK:
            await runtime.check(chain, sandbox)
            agent.on.node.rules.clear()
            with pytest.raises(CniError) as differs:
                await runtime.check(chain, sandbox)
            assert differs.value.code == 100
        if version in WITH_STATUS:
            await runtime.status(chain)
            await runtime.collect(chain, sandbox)
            assert agent.on.workload("1").sandbox is not None
            await runtime.collect(chain)
            await eventually(lambda: agent.on.node.ztunnel == {})
            assert (await runtime.add(chain, replace(sandbox, container_id="c2")))["ips"]
            sandbox = replace(sandbox, container_id="c2")
        await runtime.delete(chain, sandbox)
        assert (agent.on.node.ztunnel, agent.on.node.open) == ({}, [])


@pytest.mark.parametrize("null", [True, False])
async def test_collection_without_a_list(
    libcni: Callable[..., Libcni],
    plugins: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
    tmp_path: Path,
    null: bool,
) -> None:
    """L40: what lives stays when the runtime has no list, as ocicni has none without sandboxes."""
    async with serving(tmp_path / "run") as agent:
        known(agent)
        runtime, chain = libcni(plugins), fixed("1.1.0", tmp_path / "run" / "pluginevent.sock")
        await runtime.add(chain, attachment_of(WEB, netns="/run/netns/1"))
        # libcni has a DEL for each attachment in its cache: this one has lost it.
        forgetful = replace(runtime, cache=tmp_path / "empty")
        await forgetful.collect_without_list(chain, null=null)
        assert agent.on.workload("1").sandbox is not None
        agent.gone.add("/run/netns/1")
        await forgetful.collect_without_list(chain, null=null)
        await eventually(lambda: agent.on.node.ztunnel == {})


async def test_collection_with_an_empty_list(
    libcni: Callable[..., Libcni],
    plugins: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """A list that is there and empty says that the runtime has nothing in this network."""
    async with serving(tmp_path / "run") as agent:
        known(agent)
        runtime, chain = libcni(plugins), fixed("1.1.0", tmp_path / "run" / "pluginevent.sock")
        await runtime.add(chain, attachment_of(WEB, netns="/run/netns/1"))
        await replace(runtime, cache=tmp_path / "empty").collect(chain)
        await eventually(lambda: agent.on.node.ztunnel == {})


async def test_node_is_ready_while_the_agent_starts(
    libcni: Callable[..., Libcni],
    plugins: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """L40: STATUS succeeds before the first lists, with the API server and ztunnel away."""
    async with serving(tmp_path / "run", Node(ztunnel=None), in_sync=False) as agent:
        agent.missing = ["the first list of pods"]
        agent.api.away = True
        chain = fixed("1.1.0", tmp_path / "run" / "pluginevent.sock")
        await libcni(plugins).status(chain)
