"""The binary behind real plugins, called by the CNI project's own library.

Needs Go, and Debian's containernetworking-plugins; left out without them.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cni.chains import DEBIAN, VERSIONS, WITH_CHECK, EchoingAgent, attachment_of, chain_of
from tests.cni.libcni import Libcni
from tests.zds.model import new_netns

REAL = VERSIONS[:4]
"""What Debian's plugins speak."""


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A plugin that makes a bridge, and does not take it away."""
    ranges = [[{"subnet": "10.244.0.0/24"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "ranges": ranges}
    yield {"type": "bridge", "bridge": "cni-test0", "ipam": ipam}
    subprocess.run(("ip", "link", "delete", "cni-test0"), check=True)


@pytest.mark.parametrize("version", REAL)
async def test_after_a_real_plugin(
    libcni: Callable[..., Libcni],
    plugins: Path,
    echoing_agent: EchoingAgent,
    bridge: dict[str, Any],
    version: str,
) -> None:
    """Behind bridge and host-local, each command passes, and their result is the chain's."""
    runtime = libcni(plugins, DEBIAN)
    chain = chain_of(version, echoing_agent.socket, bridge)
    with new_netns() as namespace:
        attachment = attachment_of(netns=f"/proc/{os.getpid()}/fd/{namespace.fd}")
        await runtime.validate(chain)
        result = await runtime.add(chain, attachment)
        assert result["cniVersion"] == version
        assert result["ips"][0]["address"] == "10.244.0.2/24"
        assert result["interfaces"][0]["name"] == "cni-test0"
        if version in WITH_CHECK:
            await runtime.check(chain, attachment)
        await runtime.delete(chain, attachment)
        await runtime.delete(chain, attachment)
    expected = ["ADD", "CHECK", "DEL", "DEL"] if version in WITH_CHECK else ["ADD", "DEL", "DEL"]
    assert echoing_agent.commands == expected
