"""What the chart of istio-cni tells its agent, as this agent understands it."""

from collections.abc import Mapping
from ipaddress import IPv4Address

import pytest

from nodeagent import config
from nodeagent.commands.istio_settings import translate
from nodeagent.config import SettingError, Settings
from tests.deploy import istio_chart
from tests.docs.texts import ROOT


def settings(*arguments: str, **environ: str) -> Settings:
    return config.load({}, translate(arguments, environ).environ)


def test_nothing_given() -> None:
    """Without a word it does what istio-cni does then: no ambient mode, iptables, the chain."""
    made = settings()
    assert (made.ambient_enabled, made.native_nftables, made.istio_owned_cni_config) == (False,) * 3
    assert made.chained_cni_plugin
    assert made.on_host(made.cni_net_dir or "") == "/host/etc/cni/net.d"
    assert made.on_host(made.cni_bin_dir) == "/host/opt/cni/bin"
    assert made.host_netns is None
    assert (made.log_level, made.log_format) == ("info", "console")


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("AMBIENT_ENABLED", "true", "ambient_enabled", True),
        ("AMBIENT_DNS_CAPTURE", "false", "ambient_dns_capture", False),
        ("AMBIENT_IPV6", "false", "ambient_ipv6", False),
        ("NATIVE_NFTABLES", "true", "native_nftables", True),
        ("FORCE_IPTABLES_BINARY", "legacy", "force_iptables_binary", "legacy"),
        ("EXCLUDE_NAMESPACES", "a,b", "exclude_namespaces", frozenset("ab")),
        ("EXCLUDE_NAMESPACES", "", "exclude_namespaces", frozenset()),
        ("EXCLUDED_NAMESPACES", "a,b", "exclude_namespaces", frozenset("ab")),
        ("ZTUNNEL_UDS_ADDRESS", "/z.sock", "ztunnel_uds_address", "/z.sock"),
        ("CNI_AGENT_RUN_DIR", "/run/a", "cni_agent_run_dir", "/run/a"),
        ("HOST_PROBE_SNAT_IP", "192.0.2.1", "host_probe_snat_ip", IPv4Address("192.0.2.1")),
        ("SYSTEM_NAMESPACE", "mesh", "system_namespace", "mesh"),
        ("CHAINED_CNI_PLUGIN", "false", "chained_cni_plugin", False),
        ("CNI_CONF_NAME", "10-x.conflist", "cni_conf_name", "10-x.conflist"),
        ("CNI_CONF_NAME", "", "cni_conf_name", ""),
        ("ISTIO_OWNED_CNI_CONFIG", "true", "cni_assume_one_config", True),
        ("ISTIO_OWNED_CNI_CONFIG_FILENAME", "01-a.conflist",
         "istio_owned_cni_config_filename", "01-a.conflist"),
        ("ISTIO_OWNED_CNI_CONF_FILENAME", "01-a.conflist",
         "istio_owned_cni_config_filename", "01-a.conflist"),
        ("MOUNTED_CNI_NET_DIR", "/host/other", "cni_net_dir", "/other"),
        ("CNI_CONF_GROUP_READ", "true", "cni_conf_group_read", True),
        ("MONITORING_PORT", "15020", "monitoring_port", 15020),
        ("REPAIR_NODE_NAME", "n1", "node_name", "n1"),
        ("ALLOW_SWITCH_TO_HOST_NS", "false", "host_netns", "/proc/self/ns/net"),
        ("ALLOW_SWITCH_TO_HOST_NS", "true", "host_netns", None),
        ("LOG_LEVEL", "warn", "log_level", "warning"),
        ("VERIFY_INTERVAL", "30", "verify_interval", 30.0),
        ("CNI_NET_DIR", "/etc/elsewhere", "cni_net_dir", "/etc/cni/net.d"),
    ],
)  # fmt: skip
def test_variable_and_flag(variable: str, text: str, attribute: str, value: object) -> None:
    """Each setting works as a variable and as a flag in kebab case, and the flag goes before."""
    assert getattr(settings(**{variable: text}), attribute) == value
    flag = "--" + variable.lower().replace("_", "-")
    if text:
        assert getattr(settings(f"{flag}={text}", **{variable: "overridden"}), attribute) == value
        assert getattr(settings(flag, text), attribute) == value


def test_a_flag_alone_means_yes() -> None:
    """As Go's flags are written."""
    assert settings("--native-nftables", "--log_as_json").native_nftables
    assert settings("--ambient-enabled", "--log_as_json").log_format == "json"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("info", "info"),
        ("debug", "debug"),
        ("default:info,cni:debug", "debug"),
        ("default:warn,cni:error", "warning"),
        ("default:none", "error"),
    ],
)
def test_log_levels(text: str, level: str) -> None:
    """The most talkative of the scopes counts, and goes before the plugin's level."""
    assert settings(f"--log_output_level={text}", LOG_LEVEL="error").log_level == level


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        ([], {"AMBIENT_ENABLED": "yes"}, "AMBIENT_ENABLED"),
        ([], {"REPAIR_ENABLED": "sometimes"}, "REPAIR_ENABLED"),
        ([], {"ALLOW_SWITCH_TO_HOST_NS": "1.0"}, "ALLOW_SWITCH_TO_HOST_NS"),
        ([], {"MOUNTED_CNI_NET_DIR": "/elsewhere"}, "MOUNTED_CNI_NET_DIR"),
        ([], {"MOUNTED_CNI_NET_DIR": "/hostile"}, "MOUNTED_CNI_NET_DIR"),
        ([], {"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ([], {"HOST_PROBE_SNAT_IP": "224.0.0.1"}, "HOST_PROBE_SNAT_IP"),
        ([], {"AMBIENT_ENABLEMENT_SELECTOR": "- podSelector: [1"}, "AMBIENT_ENABLEMENT_SELECTOR"),
        (["--log_output_level=default:chatty"], {}, "--log_output_level"),
        (["--log_as_json=maybe"], {}, "log_as_json"),
        (["--no-such-flag"], {}, "no such flag"),
        (["word"], {}, "no such flag"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], environ: Mapping[str, str], said: str) -> None:
    """It is refused with one line that names the setting, whether it has an effect here or not."""
    with pytest.raises(SettingError) as refused:
        settings(*arguments, **environ)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_has_no_effect_is_named() -> None:
    """Each that was given and changes nothing, and no other."""
    given = {
        "REPAIR_RUN_AS_DAEMON": "true",
        "CURRENT_AGENT_VERSION": "1.31.0",
        "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "true",
        "CNI_EVENT_ADDRESS": "/var/run/istio-cni/pluginevent.sock",
        "LOG_UDS_SOCKET": "/elsewhere/log.sock",
        "PATH": "/bin",
    }
    translation = translate(["--ctrlz_port=9876"], given)
    assert translation.without_effect == (
        "--ctrlz_port",
        "CURRENT_AGENT_VERSION",
        "LOG_UDS_SOCKET",
        "REPAIR_RUN_AS_DAEMON",
    )
    assert not translation.environ.keys() & given.keys()
    off = translate([], {"AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "false"})
    assert off.without_effect == ("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP",)


@pytest.mark.parametrize("profile", istio_chart.PROFILES, ids=str)
def test_the_chart_itself(profile: istio_chart.Profile) -> None:
    """Whatever Istio's chart writes for a profile is understood."""
    made = settings(*profile.arguments(), **profile.environ(node="n1", pod="istio-cni-node-abcde"))
    assert made.ambient_enabled
    assert (made.node_name, made.pod_name) == ("n1", "istio-cni-node-abcde")
    assert made.native_nftables is profile.nftables
    assert made.istio_owned_cni_config is profile.own_configuration


def test_every_setting_is_in_the_table() -> None:
    """Whoever looks a variable of the chart up in docs/migrate.md finds it."""
    text = (ROOT / "docs/migrate.md").read_text()
    named = {name for profile in istio_chart.PROFILES for name in profile.environ(node="", pod="")}
    assert [name for name in named if name not in text and not name.startswith("REPAIR_")] == []
