"""The binary, built from its sources, and chains with it.

Needs: ziglang, and gcc with its sanitizers.
"""

import platform
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cni.shim import build
from tests.cni import libcni as driver
from tests.cni.chains import EchoingAgent, chain_of
from tests.cni.libcni import Libcni
from tests.cni.shim_process import ModelAgent, build_shim

FIXED = """#!/bin/sh
# A plugin for the first place in the chain, of any version.
input=$(cat)
case "$CNI_COMMAND" in
ADD) echo '{"cniVersion":"%(version)s","ips":[{%(family)s"address":"10.0.0.7/24"}],"dns":{}}' ;;
VERSION) echo '{"cniVersion":"%(version)s","supportedVersions":["%(version)s"]}' ;;
esac
"""


@pytest.fixture(scope="session")
def shim() -> Path:
    """The binary as it is shipped, for this machine."""
    build.main()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    return build.BINARIES / f"nodeagent-cni-{architecture}"


@pytest.fixture(scope="session")
def checked_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary under the sanitizers; it waits for longer than any test, so what ends was told."""
    return build_shim(tmp_path_factory.mktemp("shim") / "checked-shim")


@pytest.fixture(scope="session")
def hasty_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with short deadlines: for calls that nobody ever answers."""
    return build_shim(tmp_path_factory.mktemp("shim") / "hasty-shim", answer=1.5, restart=0.8)


@pytest.fixture
async def model_agent(tmp_path: Path) -> AsyncIterator[ModelAgent]:
    """Something that answers in the agent's place."""
    agent = ModelAgent(tmp_path / "pluginevent.sock")
    async with agent.listening():
        yield agent


@pytest.fixture
async def echoing_agent(tmp_path: Path) -> AsyncIterator[EchoingAgent]:
    """Something that adds nothing to any result, in the agent's place."""
    agent = EchoingAgent(tmp_path / "pluginevent.sock")
    async with agent.listening():
        yield agent


@pytest.fixture(scope="session")
def libcni_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls plugins through the CNI project's own library."""
    return driver.build(tmp_path_factory.mktemp("libcni") / "driver")


@pytest.fixture
def libcni(libcni_driver: Path, tmp_path: Path) -> Callable[..., Libcni]:
    """Make what a container runtime has, by the directories that its plugins are in."""

    def make(*path: Path) -> Libcni:
        return Libcni(driver=libcni_driver, cache=tmp_path / "libcni-cache", path=path)

    return make


@pytest.fixture
def plugins(shim: Path, tmp_path: Path) -> Path:
    """A directory with the binary under its name in the chain."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    shutil.copy2(shim, directory / "nodeagent")
    return directory


@pytest.fixture
def fixed(plugins: Path) -> Callable[[str, Path], dict[str, Any]]:
    """Make a chain that starts with a plugin whose result is always the same."""

    def make(version: str, socket: Path) -> dict[str, Any]:
        family = '"version":"4",' if version.startswith("0") else ""
        plugin = plugins / "fixed"
        plugin.write_text(FIXED % {"version": version, "family": family})
        plugin.chmod(0o755)
        return chain_of(version, socket, {"type": "fixed"})

    return make
