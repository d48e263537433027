"""The agent's part in the CNI chain, made from the settings.

The server answers the plugin's requests, the installer puts the plugin's binary and its
entry into the host's directories, and `uninstall_plugin` takes both out again.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from nodeagent.agent.pod_sources import Origin
from nodeagent.cni.admission import Admission
from nodeagent.cni.install import loading
from nodeagent.cni.install.binary import packaged_binary
from nodeagent.cni.install.installer import Installer
from nodeagent.cni.install.plan import Placement
from nodeagent.cni.install.repair import Repairer
from nodeagent.cni.install.uninstall import Report, uninstall
from nodeagent.cni.let_through import DaemonPods, LetThrough
from nodeagent.cni.plugin import Plugin
from nodeagent.cni.server import serve_plugin
from nodeagent.config import Settings
from nodeagent.mesh.eligibility import Policy
from nodeagent.mesh.table import Table
from nodeagent.netns.netns import Netns, NetnsId
from nodeagent.observer import Observer
from nodeagent.redirect.redirector import PodRedirector

_DAEMON_SET = "nodeagent"
"""The DaemonSet's name in deploy/base; taken where POD_NAME does not say another."""
_ZTUNNEL = "ztunnel-"
"""How the names of ztunnel's pods begin, as Istio's chart and istioctl install them."""


def plugin_server(
    settings: Settings,
    *,
    table: Table[Netns],
    policy: Policy,
    redirector: PodRedirector,
    origin: Origin,
    missing: Callable[[], Sequence[str]],
    on_answer: Callable[[int], None],
    observer: Observer,
) -> contextlib.AbstractAsyncContextManager[None]:
    """Answer the plugin for as long as the context lasts. Raises ``OSError``."""

    def identify(path: str) -> NetnsId:
        return NetnsId.of_path(settings.on_host(path))

    admission = Admission(
        table,
        policy,
        let_through=_let_through(settings),
        identify=identify,
        inspect=redirector.inspect,
        missing=missing,
        lookup=origin.pod,
        lookup_namespace=origin.namespace,
    )
    return serve_plugin(
        settings.cni_agent_run_dir,
        Plugin(table, admission, identify=identify, observer=observer),
        on_answer,
    )


def placement(settings: Settings, known: loading.Loading = loading.UNKNOWN) -> Placement:
    """Where our entry goes; `known` is what the container runtime says of its directories."""
    own_file = settings.istio_owned_cni_config_filename
    return Placement(
        conf_name=settings.cni_conf_name,
        chained=settings.chained_cni_plugin,
        own_file=own_file if settings.istio_owned_cni_config else None,
        loading=known,
    )


def installer(settings: Settings, on_attempt: Callable[[bool], None]) -> Installer | None:
    """What keeps the plugin installed; None where CNI_NET_DIR is not set.

    `on_attempt` is told of each installation that succeeds or fails.
    Raises ``NoBinaryError``.
    """
    if settings.cni_net_dir is None:
        return None
    repairer = Repairer(
        net_dir=settings.on_host(settings.cni_net_dir),
        bin_dir=settings.on_host(settings.cni_bin_dir),
        entry={
            "type": "nodeagent",
            "socket": settings.plugin_socket,
            "letThrough": _let_through(settings).entry(settings.exclude_namespaces),
        },
        binary_source=packaged_binary(),
        root=settings.host_prefix or "/",
        group_read=settings.cni_conf_group_read,
    )
    return Installer(
        repairer,
        placement=placement(settings),
        loading=partial(_ask_runtime, settings),
        on_attempt=on_attempt,
    )


async def _ask_runtime(settings: Settings) -> loading.Loading:
    answer = await loading.ask(
        endpoint=settings.container_runtime_endpoint, prefix=settings.host_prefix
    )
    if answer.most is None and settings.cni_assume_one_config:
        return replace(answer, most=1, source="the container runtime (CNI_ASSUME_ONE_CONFIG)")
    return answer


def uninstall_plugin(settings: Settings) -> Report:
    """Take the plugin out of the chain for good. Raises ``OSError``."""
    if settings.cni_net_dir is None:
        return Report()
    return uninstall(
        settings.on_host(settings.cni_net_dir),
        settings.on_host(settings.cni_bin_dir),
        prefix=settings.host_prefix,
    )


def _let_through(settings: Settings) -> LetThrough:
    # The name of a DaemonSet's pod is the DaemonSet's, a dash and five characters.
    name = settings.pod_name.rpartition("-")[0] or _DAEMON_SET
    return LetThrough(
        agent=DaemonPods(namespace=settings.pod_namespace, prefix=f"{name}-"),
        ztunnel=DaemonPods(namespace=settings.system_namespace, prefix=_ZTUNNEL),
        namespaces=settings.cni_let_through_namespaces,
    )
