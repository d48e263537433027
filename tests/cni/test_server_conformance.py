"""The CNI project's own library, the binary and the agent's plugin server, in each version.

Needs Go; left out without it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cni.chains import VERSIONS, WITH_CHECK, WITH_STATUS, attachment_of
from tests.cni.container_runtime import serving
from tests.cni.libcni import CniError, Libcni
from tests.cni.test_server import known
from tests.cni.test_shim_conformance import fixed
from tests.eventually import eventually

__all__ = ["fixed"]

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
            assert agent.on.row("1").sandbox is not None
            await runtime.collect(chain)
            await eventually(lambda: agent.on.node.ztunnel == {})
            assert (await runtime.add(chain, replace(sandbox, container_id="c2")))["ips"]
            sandbox = replace(sandbox, container_id="c2")
        await runtime.delete(chain, sandbox)
        assert (agent.on.node.ztunnel, agent.on.node.open) == ({}, [])
