"""Check of the container runtime, which knows pods' network namespaces."""

from nodeagent.commands.check.check import Check, bad, good
from nodeagent.config import Settings
from nodeagent.netns.cri import ContainerRuntime, RuntimeUnavailableError

_NAME = "container runtime"


async def check_runtime(settings: Settings) -> Check:
    """The runtime's socket is there, and answers over CRI."""
    runtime = ContainerRuntime(
        endpoint=settings.container_runtime_endpoint, prefix=settings.host_prefix
    )
    try:
        version = await runtime.version()
    except RuntimeUnavailableError as error:
        return bad(_NAME, str(error), _remedy(settings))
    finally:
        await runtime.close()
    return good(_NAME, f"{version.name} {version.version}")


def _remedy(settings: Settings) -> str:
    mounted = f", and the host's /run mounted at {settings.host_prefix}/run"
    return (
        f"CONTAINER_RUNTIME_ENDPOINT{mounted if settings.host_prefix else ''}; containerd 1.6 or "
        "CRI-O 1.20, or newer, without cri under disabled_plugins; on SELinux nodes, "
        "seLinuxOptions: {type: spc_t}"
    )
