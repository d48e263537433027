"""Pods keep their networks when the plugin comes. Needs: what conftest.py says."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from nodeagent.cni.install import loading
from nodeagent.cni.install.binary import packaged_binary
from nodeagent.cni.install.installer import Installer
from nodeagent.cni.install.plan import Placement
from nodeagent.cni.install.repair import Repairer
from tests.eventually import PATIENCE, eventually
from tests.runtime.containerd import NETWORK, Containerd

OWN = "02-istio-cni.conflist"
ENTRY = {
    "type": "nodeagent",
    "socket": "/nobody/listens",
    # No agent is there: these pods start all the same.
    "letThrough": {"namespaces": ["shop"]},
}


@pytest.fixture
async def runtime(pod_image: Path, request: pytest.FixtureRequest) -> AsyncIterator[Containerd]:
    """It loads as many configurations as the test's parameter says."""
    with tempfile.TemporaryDirectory(prefix="containerd-") as directory:
        async with Containerd(Path(directory), pod_image, networks=request.param) as made:
            yield made


async def until_loaded(runtime: Containerd, text: str) -> None:
    """Wait until containerd says `text` of the configurations that it has loaded."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if text in await runtime.cni_configuration():
                return
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def installed(runtime: Containerd) -> AsyncIterator[None]:
    """With the plugin in the chain, where containerd has read it."""
    repairer = Repairer(
        net_dir=str(runtime.net_dir),
        bin_dir=str(runtime.bin_dir),
        entry=ENTRY,
        binary_source=packaged_binary(),
    )
    installer = Installer(
        repairer,
        placement=Placement(own_file=OWN),
        loading=partial(loading.ask, endpoint=runtime.endpoint, prefix=""),
    )
    task = asyncio.create_task(installer.run(), name="installer")
    try:
        await asyncio.wait_for(installer.installed.wait(), PATIENCE)
        await until_loaded(runtime, '\\"type\\":\\"nodeagent\\"')
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def interfaces(runtime: Containerd, name: str) -> dict[str, list[str]]:
    """A new pod's interfaces, with the network of each of its addresses."""
    sandbox = await runtime.run_sandbox(name, "shop", f"uid-{name}")
    look = ("nsenter", f"--net={await runtime.netns(sandbox)}", "ip", "-json", "address")
    process = await asyncio.create_subprocess_exec(*look, stdout=asyncio.subprocess.PIPE)
    text, _ = await process.communicate()
    return {
        link["ifname"]: sorted(
            address["local"].split(".")[1] if "." in address["local"] else address["local"][:4]
            for address in link["addr_info"]
            if address["scope"] == "global"
        )
        for link in json.loads(text)
    }


@pytest.mark.parametrize("runtime", [0, 1, 2], indirect=True)
async def test_no_second_interface(runtime: Containerd) -> None:
    """A pod's interfaces and networks are the same before and with us, however many are loaded."""
    before = await interfaces(runtime, "before")
    async with installed(runtime):
        assert await interfaces(runtime, "with-us") == before
    assert list(before) == ["lo", "eth0"]


@pytest.mark.parametrize("runtime", [0], indirect=True)
async def test_two_networks_stay_two(runtime: Containerd) -> None:
    """Where a node gives its pods two networks, they keep both, each on its interface."""
    second = runtime.net_dir / "20-second.conflist"
    second.write_text(json.dumps(runtime.network(88)))
    await until_loaded(runtime, '"Name":"pods-88"')
    before = await interfaces(runtime, "before")
    async with installed(runtime):
        assert await interfaces(runtime, "with-us") == before
    assert before["eth1"][0] == "88"


@pytest.mark.parametrize("runtime", [1], indirect=True)
async def test_json_stays_the_network(runtime: Containerd) -> None:
    """A primary that ends in .json is what is copied, not a list that comes after it."""
    network = runtime.network(99)
    [bridge] = network.pop("plugins")
    (runtime.net_dir / "20-later.conflist").write_text(json.dumps(runtime.network(88)))
    (runtime.net_dir / "10-first.json").write_text(json.dumps({**network, **bridge}))
    (runtime.net_dir / NETWORK).unlink()
    await until_loaded(runtime, '"Name":"pods-99"')
    before = await interfaces(runtime, "before")
    async with installed(runtime):
        assert (runtime.net_dir / OWN).exists()
        assert await interfaces(runtime, "with-us") == before
    assert before["eth0"][0] == "99"


@pytest.mark.parametrize("runtime", [0], indirect=True)
async def test_runtime_is_asked_again(runtime: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again, and a copy that has become a second interface goes."""
    monkeypatch.setattr("nodeagent.cni.install.installer.ASK_AGAIN", 0.1)
    async with installed(runtime):
        assert not (runtime.net_dir / OWN).exists()
        runtime.reconfigure(networks=1)
        await runtime.restart()
        await eventually((runtime.net_dir / OWN).exists)
        runtime.reconfigure(networks=0)
        await runtime.restart()
        await eventually(lambda: not (runtime.net_dir / OWN).exists())
