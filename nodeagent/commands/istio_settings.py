"""What the chart of istio-cni tells its agent, in this agent's settings.

The chart (Istio 1.27 to 1.31) starts ``install-cni`` with flags and a ConfigMap in the
environment. Most of its settings have the same name and meaning here, some have another
name, and some have no effect. Everything is in tables; nothing is read but the arguments.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nodeagent import validators as checks
from nodeagent.config import SETTINGS, SettingError
from nodeagent.log import printable
from nodeagent.mesh.gobool import parse_bool

HOST_PREFIX = "/host"
"""Where the chart mounts the host's directories."""
_MOUNTED_NET_DIR = f"{HOST_PREFIX}/etc/cni/net.d"
_BIN_DIR = "/opt/cni/bin"
"""Below the prefix, whatever directory of the host it is."""
_RUN_DIR = "/var/run/istio-cni"

_DEFAULTS = {
    "AMBIENT_ENABLED": "false",
    "NATIVE_NFTABLES": "false",
    "ISTIO_OWNED_CNI_CONFIG": "false",
}
"""Where istio-cni's defaults are other than this agent's."""

_OTHERS_HERE = frozenset({"LOG_LEVEL", "LOG_FORMAT", "CNI_NET_DIR", "CNI_BIN_DIR", "HOST_PREFIX"})
"""Settings of this agent that are not taken from the environment as they stand: the chart has
them with another meaning, or its mounts decide them."""


def _anything(text: str) -> str:
    return text


_TRANSLATED: Mapping[str, Callable[[str], object]] = {
    "ALLOW_SWITCH_TO_HOST_NS": parse_bool,
    "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": parse_bool,
    "CNI_EVENT_ADDRESS": checks.socket_path,
    "EXCLUDED_NAMESPACES": checks.namespaces,
    "ISTIO_OWNED_CNI_CONF_FILENAME": checks.file_name,
    "LOG_UDS_SOCKET": checks.socket_path,
    "MOUNTED_CNI_NET_DIR": checks.path,
    "REPAIR_NODE_NAME": checks.name(253),
}
"""Settings that have another name here, or decide something else."""

_WITHOUT_EFFECT: Mapping[str, Callable[[str], object]] = {
    "AMBIENT_DISABLE_SAFE_UPGRADE": parse_bool,
    "AMBIENT_USE_SCOPED_XTABLES_LOCKING": parse_bool,
    "CNI_NETWORK_CONFIG": _anything,
    "CNI_NETWORK_CONFIG_FILE": _anything,
    "CURRENT_AGENT_VERSION": _anything,
    "ENABLE_AMBIENT_DETECTION_RETRY": parse_bool,
    "GOMAXPROCS": _anything,
    "GOMEMLIMIT": _anything,
    "KUBECONFIG_FILENAME": _anything,
    "KUBECONFIG_MODE": _anything,
    "KUBE_CA_FILE": _anything,
    "REPAIR_BROKEN_POD_LABEL_KEY": _anything,
    "REPAIR_BROKEN_POD_LABEL_VALUE": _anything,
    "REPAIR_DELETE_PODS": parse_bool,
    "REPAIR_ENABLED": parse_bool,
    "REPAIR_FIELD_SELECTORS": _anything,
    "REPAIR_INIT_CONTAINER_EXIT_CODE": _anything,
    "REPAIR_INIT_CONTAINER_NAME": _anything,
    "REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE": _anything,
    "REPAIR_LABEL_PODS": parse_bool,
    "REPAIR_LABEL_SELECTORS": _anything,
    "REPAIR_REPAIR_PODS": parse_bool,
    "REPAIR_RUN_AS_DAEMON": parse_bool,
    "REPAIR_SIDECAR_ANNOTATION": _anything,
    "REVISION": _anything,
    "SKIP_TLS_VERIFY": parse_bool,
}
"""Settings that are accepted, and named once in the log."""

_LOG_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "fatal": "error",
    "none": "error",
}
"""Istio's levels, the most talkative first, and this agent's."""
_IGNORED_FLAGS = ("log_", "ctrlz_")
"""How further flags of every Istio program begin: files and ports that there are none of here."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What `nodeagent.config.load` gets as its environment, and what people should know."""

    environ: Mapping[str, str]
    without_effect: tuple[str, ...]
    """Names of settings that were given and change nothing, sorted."""


def translate(arguments: Sequence[str], environ: Mapping[str, str]) -> Translation:
    """Translate the chart's `arguments` and `environ`; a flag goes before its variable.

    Variables that neither istio-cni nor this agent has are left out. Raises ``SettingError``
    with one line for the first value that cannot be meant, and for an unknown flag.
    """
    given = {name: environ[name] for name in sorted(_KNOWN & environ.keys())}
    # Kubernetes writes a value that is not set as an empty one; a list may be meant so.
    given = {name: text for name, text in given.items() if text or name == "EXCLUDE_NAMESPACES"}
    flags, ignored = _read(arguments)
    given |= {name: text for name, text in flags.items() if name in _KNOWN}
    for name, check in {**_TRANSLATED, **_WITHOUT_EFFECT}.items():
        if name in given:
            _check(name, given[name], check)
    result = _DEFAULTS | {
        name: text for name, text in given.items() if name in _OURS - _OTHERS_HERE
    }
    result |= _directories(given)
    result |= _log(flags, given.get("LOG_LEVEL", "info"))
    result |= _other_names(given)
    # The chart mounts no socket of the runtime's. Who asks for a file of its own has said that
    # the runtime loads the first file only, as for Istio's agent.
    if "CNI_ASSUME_ONE_CONFIG" not in given:
        result["CNI_ASSUME_ONE_CONFIG"] = result["ISTIO_OWNED_CNI_CONFIG"]
    return Translation(
        environ=result, without_effect=tuple(sorted({*ignored, *_idle(given, result)}))
    )


_OURS = frozenset(setting.variable for setting in SETTINGS)
_KNOWN = _OURS | _TRANSLATED.keys() | _WITHOUT_EFFECT.keys()


def _read(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags by the names of their variables, and those that are ignored as they are."""
    flags: dict[str, str] = {}
    ignored: list[str] = []
    rest = list(arguments)
    while rest:
        given = rest.pop(0)
        flag, equals, text = given.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        variable = name.upper()
        logs = name in {"log_output_level", "log_as_json"}
        ignore = name.startswith(_IGNORED_FLAGS) and not logs and variable not in _KNOWN
        if not flag.startswith("--") or not (logs or ignore or variable in _KNOWN):
            raise SettingError(f'"{printable(given)}": install-cni has no such flag')
        if not equals:
            # A flag alone means yes, where the next word is no value of it.
            text = rest.pop(0) if rest and not rest[0].startswith("-") else "true"
        if ignore:
            ignored.append(flag)
        else:
            flags[name if logs else variable] = text
    return flags, ignored


def _directories(given: Mapping[str, str]) -> dict[str, str]:
    prefix = given.get("HOST_PREFIX", HOST_PREFIX)
    mounted = given.get("MOUNTED_CNI_NET_DIR", _MOUNTED_NET_DIR)
    inside = mounted.removeprefix(prefix)
    if inside == mounted or not inside.startswith("/"):
        raise _wrong("MOUNTED_CNI_NET_DIR", mounted, f"a directory below {prefix} is expected")
    return {"HOST_PREFIX": prefix, "CNI_NET_DIR": inside, "CNI_BIN_DIR": _BIN_DIR}


def _log(flags: Mapping[str, str], level: str) -> dict[str, str]:
    as_json = flags.get("log_as_json", "false")
    _check("log_as_json", as_json, parse_bool)
    if "log_output_level" in flags:
        level = _most_talkative(flags["log_output_level"])
    elif level not in _LOG_LEVELS:
        raise _wrong("LOG_LEVEL", level, f"one of {', '.join(_LOG_LEVELS)} is expected")
    return {
        "LOG_LEVEL": _LOG_LEVELS[level],
        "LOG_FORMAT": "json" if parse_bool(as_json) else "console",
    }


def _most_talkative(text: str) -> str:
    """The level of an option like ``info`` or ``default:info,cni:debug``.

    This agent's log has no scopes: the level of the most talkative one is everybody's.
    """
    levels = [part.rpartition(":")[2].strip() for part in text.split(",")]
    if not all(level in _LOG_LEVELS for level in levels):
        expected = f"LEVEL or SCOPE:LEVEL,… with one of {', '.join(_LOG_LEVELS)} is expected"
        raise _wrong("--log_output_level", text, expected)
    return min(levels, key=list(_LOG_LEVELS).index)


def _other_names(given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for istios, ours in (
        ("EXCLUDED_NAMESPACES", "EXCLUDE_NAMESPACES"),
        ("REPAIR_NODE_NAME", "NODE_NAME"),
        ("ISTIO_OWNED_CNI_CONF_FILENAME", "ISTIO_OWNED_CNI_CONFIG_FILENAME"),
    ):
        if istios in given and ours not in given:
            yield ours, given[istios]
    if not parse_bool(given.get("ALLOW_SWITCH_TO_HOST_NS", "true")) and "HOST_NETNS" not in given:
        yield "HOST_NETNS", "/proc/self/ns/net"


def _idle(given: Mapping[str, str], result: Mapping[str, str]) -> Iterator[str]:
    yield from _WITHOUT_EFFECT.keys() & given.keys()
    yield from {"CNI_NET_DIR", "CNI_BIN_DIR"} & given.keys()
    if not parse_bool(given.get("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true")):
        yield "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP"
    run_dir = result.get("CNI_AGENT_RUN_DIR", _RUN_DIR).rstrip("/")
    for name, file in (("CNI_EVENT_ADDRESS", "pluginevent.sock"), ("LOG_UDS_SOCKET", "log.sock")):
        if given.get(name, f"{run_dir}/{file}") != f"{run_dir}/{file}":
            yield name  # the sockets are in CNI_AGENT_RUN_DIR


def _check(name: str, text: str, check: Callable[[str], object]) -> None:
    try:
        check(text)
    except ValueError as error:
        raise _wrong(name, text, str(error)) from error


def _wrong(name: str, text: str, reason: str) -> SettingError:
    return SettingError(f'{name} is "{printable(text[:80])}": {printable(reason)}')
