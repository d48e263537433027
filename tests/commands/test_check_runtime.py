"""`nodeagent check` and a real container runtime."""

from nodeagent import config
from nodeagent.commands.check.chain import check_chain
from nodeagent.commands.check.runtime import check_runtime
from tests.runtime.containerd import Containerd


async def test_runtime_tells_its_name(containerd: Containerd) -> None:
    """The runtime is asked over its own protocol, not only looked for."""
    settings = config.load({"container_runtime_endpoint": containerd.endpoint}, {})
    check = await check_runtime(settings)
    assert check.ok, check
    assert "containerd 1." in check.detail


async def test_directories_are_compared_with_the_runtime(containerd: Containerd) -> None:
    """The runtime tells where its plugins and configurations are, and how many it loads."""
    flags = {
        "container_runtime_endpoint": containerd.endpoint,
        "cni_net_dir": str(containerd.net_dir),
    }
    right = config.load({**flags, "cni_bin_dir": str(containerd.bin_dir)}, {})
    directories, entry = await check_chain(right)
    assert directories.ok, directories
    assert "02-istio-cni.conflist, a copy of 10-pods.conflist" in entry.detail
    containerd.reconfigure(networks=0)
    await containerd.restart()
    wrong = config.load({**flags, "cni_bin_dir": "/opt/cni/bin"}, {})
    directories, entry = await check_chain(wrong)
    assert not directories.ok
    assert f"CNI_BIN_DIR={containerd.bin_dir}" in directories.remedy
    assert "loads all configurations" in entry.detail
