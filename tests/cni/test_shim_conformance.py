"""The binary called by the CNI project's own library, in each version of the specification.

Needs Go; left out without it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cni.chains import (
    COREDNS,
    VERSIONS,
    WITH_CHECK,
    WITH_STATUS,
    EchoingAgent,
    attachment_of,
)
from tests.cni.libcni import CniError, Libcni
from tests.cni.shim_process import ModelAgent


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_and_command(
    libcni: Callable[..., Libcni],
    plugins: Path,
    echoing_agent: EchoingAgent,
    fixed: Callable[[str, Path], dict[str, Any]],
    version: str,
) -> None:
    """Every command that a version has reaches the agent, and the library takes the answer."""
    runtime, chain = libcni(plugins), fixed(version, echoing_agent.socket)
    expected = ["ADD"]
    await runtime.validate(chain)
    result = await runtime.add(chain, attachment_of())
    assert (result["cniVersion"], result["ips"][0]["address"]) == (version, "10.0.0.7/24")
    if version in WITH_CHECK:
        await runtime.check(chain, attachment_of())
        expected += ["CHECK"]
    if version in WITH_STATUS:
        await runtime.status(chain)
        await runtime.collect(chain, attachment_of())
        expected += ["STATUS", "GC"]
    await runtime.delete(chain, attachment_of())
    assert echoing_agent.commands == [*expected, "DEL"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_without_the_agent(
    libcni: Callable[..., Libcni],
    plugins: Path,
    tmp_path: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
    version: str,
) -> None:
    """L15, L18: an excluded pod starts with the chain's result, and all else passes too."""
    runtime, chain = libcni(plugins), fixed(version, tmp_path / "absent")
    await runtime.validate(chain)
    result = await runtime.add(chain, attachment_of(COREDNS))
    assert (result["cniVersion"], result["ips"][0]["address"]) == (version, "10.0.0.7/24")
    if version in WITH_CHECK:
        await runtime.check(chain, attachment_of(COREDNS))
    await runtime.status(chain)
    await runtime.collect(chain)
    await runtime.delete(chain, attachment_of(COREDNS))


async def test_pod_that_waits(
    libcni: Callable[..., Libcni],
    plugins: Path,
    hasty_shim: Path,
    tmp_path: Path,
    fixed: Callable[[str, Path], dict[str, Any]],
) -> None:
    """L16: the library understands that an ordinary pod is to try again, and why."""
    shutil.copy2(hasty_shim, plugins / "nodeagent")
    chain = fixed("1.0.0", tmp_path / "absent")
    with pytest.raises(CniError, match="absent: No such file or directory") as caught:
        await libcni(plugins).add(chain, attachment_of())
    assert caught.value.code == 11


async def test_error_of_the_agent(
    libcni: Callable[..., Libcni],
    plugins: Path,
    model_agent: ModelAgent,
    fixed: Callable[[str, Path], dict[str, Any]],
) -> None:
    """The library has the agent's own code and words."""
    error = {"cniVersion": "1.0.0", "code": 101, "msg": "no ztunnel", "details": "look there"}
    model_agent.status, model_agent.body = 500, json.dumps(error).encode()
    chain = fixed("1.0.0", model_agent.socket)
    with pytest.raises(CniError, match="no ztunnel") as caught:
        await libcni(plugins).add(chain, attachment_of())
    assert caught.value.code == 101
