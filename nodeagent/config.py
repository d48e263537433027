"""Every setting, in one place: its name, its default, what it may be, and its help.

The other names are made from the attribute's: ``ambient_ipv6`` is ``AMBIENT_IPV6`` in the
environment and ``--ambient-ipv6`` on the command line. A flag takes precedence over the
variable, and the variable over the default.
"""

# ruff: noqa: RUF009 - `_setting` makes a field, each with its own default.

import dataclasses
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nodeagent import validators as checks
from nodeagent.log import Format, printable
from nodeagent.mesh.gobool import parse_bool
from nodeagent.mesh.selector import DEFAULT_ENABLEMENT, EnablementSelectors, parse_enablement

_ADMIN_SOCKET = "admin.sock"
_PLUGIN_SOCKET = "pluginevent.sock"  # the longest of those in CNI_AGENT_RUN_DIR
_HOST_PREFIX = "/host"
_SHOWN = 80
"""Characters of a wrong value that an error message shows."""


class SettingError(ValueError):
    """A setting has a wrong value; the text is one line for the person who set it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as command line and help need it."""

    attribute: str
    group: str
    metavar: str
    help: str
    default: str
    parse: Callable[[str], object]

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return self.attribute.upper()

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.attribute.replace("_", "-")


def _setting(
    group: str,
    metavar: str,
    parse: Callable[[str], object],
    *,
    default: object,
    shown: str = "",
    help: str,  # noqa: A002 - argparse's word
) -> Any:
    """Make a field of ``Settings``; `shown` is the default in words where it has no text."""
    text = shown or str(default)
    return dataclasses.field(
        default=default,
        metadata={"group": group, "metavar": metavar, "parse": parse, "shown": text, "help": help},
    )


def _switch(group: str, *, default: bool, help: str) -> Any:  # noqa: A002 - argparse's word
    """Make a field of ``Settings`` that is on or off."""
    shown = str(default).lower()
    return _setting(group, "BOOL", parse_bool, default=default, shown=shown, help=help)


_PODS, _MESH, _NETWORK, _ZTUNNEL, _CNI, _AGENT = (
    "where pods come from",
    "which pods are in the mesh",
    "redirection",
    "ztunnel",
    "the CNI chain",
    "the agent itself",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The agent's configuration, checked."""

    pod_manifests: str | None = _setting(
        _PODS,
        "DIR",
        checks.path,
        default=None,
        shown="none",
        help="folder of Kubernetes manifests (Pod, Namespace) that is watched;\n"
        "without it, pods come from the Kubernetes API",
    )
    kubeconfig: str | None = _setting(
        _PODS,
        "PATH",
        checks.path,
        default=None,
        shown="the pod's own ServiceAccount",
        help="how to reach the Kubernetes API",
    )
    node_name: str = _setting(
        _PODS,
        "NAME",
        checks.name(253),
        default="",  # `load` asks the host
        shown="the host's name",
        help="the Kubernetes node that the agent is on",
    )
    container_runtime_endpoint: str = _setting(
        _PODS,
        "PATH",
        checks.endpoint,
        default="",
        shown="containerd's or CRI-O's, whichever is there",
        help="socket of the container runtime (CRI), as the agent sees it",
    )
    host_prefix: str = _setting(
        _PODS,
        "DIR",
        checks.prefix,
        default="",  # `load` looks
        shown="/host where /host/proc is, else none",
        help="where a container has the host's /proc, /run, /etc/cni/net.d and /opt/cni/bin",
    )

    ambient_enabled: bool = _switch(
        _MESH,
        default=True,
        help="false: no pod is in the mesh, no ztunnel is served, the plugin is in no chain",
    )
    exclude_namespaces: frozenset[str] = _setting(
        _MESH,
        "LIST",
        checks.namespaces,
        default=frozenset({"kube-system"}),
        shown="kube-system",
        help="namespaces whose pods are never enrolled, comma-separated",
    )
    ambient_enablement_selector: EnablementSelectors = _setting(
        _MESH,
        "YAML",
        parse_enablement,
        default=DEFAULT_ENABLEMENT,
        shown="istio.io/dataplane-mode=ambient on the pod or on its namespace",
        help="list of podSelector/namespaceSelector pairs, any of which enrolls a pod",
    )
    system_namespace: str = _setting(
        _MESH,
        "NAME",
        checks.name(63),
        default="istio-system",
        help="the namespace of ztunnel's pods, which are not enrolled themselves",
    )

    ambient_dns_capture: bool = _switch(
        _NETWORK,
        default=True,
        help="send pods' DNS queries to ztunnel too",
    )
    ambient_ipv6: bool = _switch(
        _NETWORK,
        default=True,
        help="redirect IPv6 as well as IPv4",
    )
    host_probe_snat_ip: IPv4Address = _setting(
        _NETWORK,
        "ADDRESS",
        checks.address(IPv4Address),
        default=IPv4Address("169.254.7.127"),
        help="source address of the node's health probes, let through to the application",
    )
    host_probe_snat_ipv6: IPv6Address = _setting(
        _NETWORK,
        "ADDRESS",
        checks.address(IPv6Address),
        default=IPv6Address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
        help="the same for IPv6",
    )
    ambient_enable_aws_branch_eni_probe: bool = _switch(
        _NETWORK,
        default=True,
        help="policy rules on the host for the probes of pods that have an AWS branch interface\n"
        "(Security Groups for Pods)",
    )
    native_nftables: bool = _switch(
        _NETWORK,
        default=True,
        help="write rules for nftables itself; otherwise through the iptables programs",
    )
    force_iptables_binary: str = _setting(
        _NETWORK,
        "VARIANT",
        checks.choice("nft", "legacy", ""),
        default="",
        shown="found out",
        help="nft or legacy: which iptables programs, without NATIVE_NFTABLES",
    )
    host_netns: str | None = _setting(
        _NETWORK,
        "PATH",
        checks.path,
        default=None,
        shown="that of PID 1 under HOST_PREFIX, else the agent's own",
        help="the host's network namespace: where health probes come from, and never a pod's",
    )
    keep_open_connections: bool = _switch(
        _NETWORK,
        default=False,
        help="a running pod that joins keeps the connections that it has, past ztunnel,\n"
        "until they close; otherwise they are reset",
    )
    removal_grace: float = _setting(
        _NETWORK,
        "SECONDS",
        checks.seconds_or_none,
        default=0.0,
        shown="0",
        help="how long a running pod that leaves keeps the connections that go through\n"
        "ztunnel; with 0 they are reset at once",
    )
    verify_interval: float = _setting(
        _NETWORK,
        "SECONDS",
        checks.seconds,
        default=60.0,
        shown="60",
        help="how often each enrolled pod is compared with what it should be",
    )

    ztunnel_uds_address: str = _setting(
        _ZTUNNEL,
        "PATH",
        checks.socket_path,
        default="/var/run/ztunnel/ztunnel.sock",
        help="socket on which ztunnel connects",
    )
    zds_peer_uids: frozenset[int] = _setting(
        _ZTUNNEL,
        "LIST",
        checks.user_ids,
        default=frozenset({0}),
        shown="0",
        help="user ids that may connect there: they are given pods' namespaces",
    )

    cni_net_dir: str | None = _setting(
        _CNI,
        "DIR",
        checks.path,
        default=None,
        shown="none: the plugin is not installed",
        help="the host's CNI configuration directory, usually /etc/cni/net.d",
    )
    cni_bin_dir: str = _setting(
        _CNI,
        "DIR",
        checks.path,
        default="/opt/cni/bin",
        help="the host's directory of CNI plugins",
    )
    cni_conf_name: str = _setting(
        _CNI,
        "FILE",
        checks.file_name,
        default="",
        shown="the first valid one",
        help="the primary CNI configuration in CNI_NET_DIR",
    )
    chained_cni_plugin: bool = _switch(
        _CNI,
        default=True,
        help="join the primary's chain; otherwise write a configuration of its own, for Multus",
    )
    istio_owned_cni_config: bool = _switch(
        _CNI,
        default=True,
        help="join in a copy of the primary that sorts before it; otherwise in its own file",
    )
    cni_assume_one_config: bool = _switch(
        _CNI,
        default=False,
        help="a container runtime that cannot be asked is one that loads a single configuration:\n"
        "our copy of the primary goes before it there too",
    )
    istio_owned_cni_config_filename: str = _setting(
        _CNI,
        "FILE",
        checks.file_name,
        default="02-istio-cni.conflist",
        help="the name of that copy",
    )
    cni_conf_group_read: bool = _switch(
        _CNI,
        default=False,
        help="a new configuration can be read by its group too (mode 0640 instead of 0600)",
    )
    cni_let_through_namespaces: frozenset[str] = _setting(
        _CNI,
        "LIST",
        checks.namespaces,
        default=frozenset(),
        shown="none",
        help="namespaces, besides those of EXCLUDE_NAMESPACES, whose pods start while no agent\n"
        "can say whether they are in the mesh, comma-separated; those that are come into it late",
    )
    remove_startup_taint: bool = _switch(
        _CNI,
        default=False,
        help="take STARTUP_TAINT off the agent's own node once it is ready",
    )
    startup_taint: str = _setting(
        _CNI,
        "KEY",
        checks.taint_key,
        default="cni.istio.io/not-ready",
        help="key of the taint that keeps pods off a new node until then",
    )

    cni_agent_run_dir: str = _setting(
        _AGENT,
        "DIR",
        checks.directory_of(_PLUGIN_SOCKET),
        default="/var/run/istio-cni",
        help="where the agent makes its own sockets",
    )
    readiness_address: str | None = _setting(
        _AGENT,
        "ADDRESS",
        checks.listen_address,
        default=None,
        shown=":8000 with the Kubernetes API, else none",
        help="[HOST]:PORT for /readyz and /healthz; empty for none",
    )
    monitoring_port: int | None = _setting(
        _AGENT,
        "PORT",
        checks.port_or_none,
        default=None,
        shown="15014 with the Kubernetes API, else 0",
        help="port of /metrics, for Prometheus; 0 for none",
    )
    pod_name: str = _setting(
        _AGENT,
        "NAME",
        checks.name(253),
        default="",
        shown="none",
        help="the agent's own pod: its DaemonSet tells an upgrade from an uninstall",
    )
    pod_namespace: str = _setting(
        _AGENT,
        "NAME",
        checks.name(63),
        default="istio-system",
        help="the namespace of that pod",
    )
    release_pods_on_uninstall: bool = _switch(
        _AGENT,
        default=False,
        help="when the agent goes from its node for good, take every pod out of the mesh before,\n"
        "in order; otherwise they stay redirected until they are made anew",
    )
    log_level: str = _setting(
        _AGENT,
        "LEVEL",
        checks.choice("debug", "info", "warning", "error"),
        default="info",
        help="debug, info, warning or error",
    )
    log_format: Format = _setting(
        _AGENT,
        "FORMAT",
        checks.choice("auto", "console", "json"),
        default="auto",
        help="console (for people), json, or auto: console on a terminal, else json",
    )

    @property
    def admin_socket(self) -> str:
        """Path of the socket that ``nodeagent status`` asks."""
        return os.path.join(self.cni_agent_run_dir, _ADMIN_SOCKET)

    @property
    def plugin_socket(self) -> str:
        """Path of the socket that CNI plugins ask, ours and Istio's own."""
        return os.path.join(self.cni_agent_run_dir, _PLUGIN_SOCKET)

    def on_host(self, path: str) -> str:
        """The host's `path` as the agent sees it."""
        return self.host_prefix + path


SETTINGS = tuple(
    Setting(
        attribute=field.name,
        group=field.metadata["group"],
        metavar=field.metadata["metavar"],
        help=field.metadata["help"],
        default=field.metadata["shown"],
        parse=field.metadata["parse"],
    )
    for field in dataclasses.fields(Settings)
)
"""All settings in the order of the help."""


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """Make the settings from `flags` (by attribute) and `environ`.

    Raises ``SettingError`` for the first one that is wrong.
    """
    values: dict[str, Any] = {
        "node_name": socket.gethostname().lower(),
        "host_prefix": _HOST_PREFIX if os.path.isdir(_HOST_PREFIX + "/proc") else "",
    }
    for setting in SETTINGS:
        text = flags.get(setting.attribute, environ.get(setting.variable))
        if text is not None:
            values[setting.attribute] = _parsed(setting, text)
    return Settings(**values)


def require_manifests(settings: Settings) -> str:
    """Return the folder that tells about pods; ``SettingError`` if none does."""
    if settings.pod_manifests is None:
        raise SettingError(
            "POD_MANIFESTS (--pod-manifests) is not set: "
            "the path of a folder with Kubernetes manifests is expected"
        )
    return settings.pod_manifests


def _parsed(setting: Setting, text: str) -> object:
    try:
        return setting.parse(text)
    except ValueError as error:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        reason = printable(" ".join(str(error).split()))
        raise SettingError(
            f'{setting.variable} ({setting.flag}) is "{printable(shown)}": {reason}'
        ) from error
