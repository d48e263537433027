"""Checks of the CNI directories: whether the container runtime reads them, where our entry goes."""

import asyncio

from nodeagent.agent.cni_wiring import placement
from nodeagent.cni.install import confdir
from nodeagent.cni.install.loading import Loading, ask
from nodeagent.cni.install.plan import NotYetError, plan
from nodeagent.commands.check import distributions
from nodeagent.commands.check.check import Check, bad, good
from nodeagent.config import Settings
from nodeagent.linux.links import follow

_ENTRY = {"type": "nodeagent"}


async def check_chain(settings: Settings) -> list[Check]:
    """Check both; nothing where the plugin is not to be installed."""
    if settings.cni_net_dir is None:
        return []
    loading = await ask(endpoint=settings.container_runtime_endpoint, prefix=settings.host_prefix)
    return [
        check_chain_directories(settings, loading),
        await asyncio.to_thread(check_entry, settings, loading),
    ]


def check_chain_directories(settings: Settings, loading: Loading) -> Check:
    """The directories of the settings are those that the runtime, or the distribution, has."""
    name = "CNI directories"
    pairs = (
        ("CNI_NET_DIR", settings.cni_net_dir or "", (loading.conf_dir,)),
        ("CNI_BIN_DIR", settings.cni_bin_dir, loading.bin_dirs),
    )
    ours = " and ".join(own for _, own, _ in pairs)
    distribution = distributions.found(settings)
    if not loading.conf_dir:
        # The runtime does not say: a difference from the usual directories proves nothing.
        usual = f"; usual on {distribution.name}: {distribution.places}" if distribution else ""
        return good(name, f"{ours}{usual}; {loading.source}")
    wrong = [
        f"{variable}={told[0]}"
        for variable, own, told in pairs
        if told and not any(_same(settings, own, each) for each in told)
    ]
    if not wrong:
        return good(name, f"{ours}, as {loading.source} has them")
    mounts = (
        distribution.mounts
        if distribution and distribution.mounts
        else ", ".join(each.partition("=")[2] for each in wrong)
    )
    return bad(
        name,
        f"{ours}, but {loading.source} has others",
        f"{' and '.join(wrong)}, and a mount of {mounts} (docs/cluster.md, distributions)",
    )


def check_entry(settings: Settings, loading: Loading) -> Check:
    """The directory as it is now has a place for our entry. Writes nothing."""
    name = "CNI chain"
    directory = follow(
        settings.on_host(settings.cni_net_dir or ""), settings.host_prefix or "/"
    ).path
    try:
        made = plan(confdir.read(directory), placement(settings, loading), _ENTRY)
    except NotYetError as error:
        return bad(
            name,
            str(error),
            f"it is installed as soon as that has changed; {settings.cni_net_dir} has to be the"
            " directory that the container runtime reads (docs/cluster.md)",
        )
    except OSError as error:
        return bad(name, str(error), f"see that {directory} is there, and may be read")
    where = f"the entry goes into {made.target}"
    if made.primary != made.target:
        return good(name, f"{where}, a copy of {made.primary} that only {loading.source} reads")
    reason = made.no_own_file or "as ISTIO_OWNED_CNI_CONFIG and CHAINED_CNI_PLUGIN say"
    return good(name, f"{where}: {reason}")


def _same(settings: Settings, own: str, told: str) -> bool:
    root = settings.host_prefix or "/"
    return own == told or (
        follow(settings.on_host(own), root).path == follow(settings.on_host(told), root).path
    )
