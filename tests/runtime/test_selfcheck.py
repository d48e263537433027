"""`nodeagent check` and a real container runtime."""

from nodeagent import config
from nodeagent.selfcheck.runtime import check_runtime
from tests.runtime.containerd import Containerd


async def test_runtime_tells_its_name(containerd: Containerd) -> None:
    """The runtime is asked over its own protocol, not only looked for."""
    settings = config.load({"container_runtime_endpoint": containerd.endpoint}, {})
    check = await check_runtime(settings)
    assert check.ok, check
    assert "containerd 1." in check.detail
