"""The agent's place in the CNI chain, made from the settings: server and installer."""

import contextlib
from collections.abc import Callable
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
from nodeagent.redirect.redirector import PodRedirector

_DAEMON_SET = "nodeagent"
"""As in deploy/base, where the agent's own pod is not named."""
_ZTUNNEL = "ztunnel-"
"""How Istio's chart and istioctl call the DaemonSet, with a dash."""


def plugin_server(
    settings: Settings,
    *,
    table: Table[Netns],
    policy: Policy,
    redirector: PodRedirector,
    origin: Origin,
    missing: Callable[[], list[str]],
) -> contextlib.AbstractAsyncContextManager[None]:
    """Answer the plugin for as long as the context lasts. Raises ``OSError``."""

    def identify(path: str) -> NetnsId:
        return NetnsId.of_path(settings.on_host(path))

    admission = Admission(
        table,
        policy,
        let_through=_let_through(settings),
        identify=identify,
        missing=missing,
        lookup=origin.pod,
        lookup_namespace=origin.namespace,
    )
    return serve_plugin(
        settings.cni_agent_run_dir,
        Plugin(table, admission, inspect=redirector.inspect),
    )


def placement(settings: Settings, known: loading.Loading = loading.UNKNOWN) -> Placement:
    """Where our entry goes, when `known` is what the container runtime says."""
    own_file = settings.istio_owned_cni_config_filename
    return Placement(
        conf_name=settings.cni_conf_name,
        chained=settings.chained_cni_plugin,
        own_file=own_file if settings.istio_owned_cni_config else None,
        loading=known,
    )


def installer(settings: Settings) -> Installer | None:
    """Return what keeps the plugin installed; None where the settings name no place for it.

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
    )
    return Installer(
        repairer,
        placement=placement(settings),
        loading=partial(
            loading.ask,
            endpoint=settings.container_runtime_endpoint,
            prefix=settings.host_prefix,
        ),
    )


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
    # A DaemonSet's pods are called like it, with a dash and five characters.
    name = settings.pod_name.rpartition("-")[0] or _DAEMON_SET
    return LetThrough(
        agent=DaemonPods(namespace=settings.pod_namespace, prefix=f"{name}-"),
        ztunnel=DaemonPods(namespace=settings.system_namespace, prefix=_ZTUNNEL),
        namespaces=settings.cni_let_through_namespaces,
    )
