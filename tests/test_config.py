"""Settings: which value counts, and what is said about a wrong one."""

import dataclasses
from ipaddress import IPv4Address

import pytest

from nodeagent import config
from nodeagent.config import SETTINGS, SettingError, load
from nodeagent.mesh.selector import DEFAULT_ENABLEMENT


def test_flag_goes_before_variable_and_variable_before_default() -> None:
    """A setting comes from the nearest place that names it."""
    environ = {"SYSTEM_NAMESPACE": "from-environment", "LOG_LEVEL": "debug"}
    settings = load({"system_namespace": "from-flag"}, environ)
    assert settings.system_namespace == "from-flag"
    assert settings.log_level == "debug"
    assert settings.cni_agent_run_dir == "/var/run/istio-cni"


def test_defaults_are_those_that_istios_users_know() -> None:
    """With nothing set, the agent behaves as Istio's documentation says."""
    settings = load({}, {})
    assert settings.ztunnel_uds_address == "/var/run/ztunnel/ztunnel.sock"
    assert settings.exclude_namespaces == {"kube-system"}
    assert settings.ambient_enablement_selector == DEFAULT_ENABLEMENT
    assert settings.ambient_dns_capture
    assert settings.ambient_ipv6
    assert str(settings.host_probe_snat_ip) == "169.254.7.127"
    assert str(settings.host_probe_snat_ipv6) == "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
    assert settings.zds_peer_uids == {0}
    assert settings.node_name


def test_every_default_that_has_a_text_is_what_the_text_means() -> None:
    """The help's defaults are true: given as a value, each leads to the same settings."""
    words = {"node_name", "pod_manifests", "ambient_enablement_selector", "host_netns"}
    words |= {"force_iptables_binary", "kubeconfig", "container_runtime_endpoint", "host_prefix"}
    words |= {"cni_net_dir", "cni_conf_name", "readiness_address", "pod_name"}
    words |= {"cni_let_through_namespaces", "monitoring_port"}
    texts = {s.attribute: s.default for s in SETTINGS if s.attribute not in words}
    assert load(texts, {}) == load({}, {})


def test_names_are_derived_from_one() -> None:
    """Variable and flag of a setting have the same words."""
    names = {setting.attribute: (setting.variable, setting.flag) for setting in SETTINGS}
    assert names["ztunnel_uds_address"] == ("ZTUNNEL_UDS_ADDRESS", "--ztunnel-uds-address")
    assert names.keys() == {field.name for field in dataclasses.fields(config.Settings)}


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ZTUNNEL_UDS_ADDRESS", "ztunnel.sock", "at most 107 bytes"),
        ("ZTUNNEL_UDS_ADDRESS", "/" + "x" * 107, "at most 107 bytes"),
        ("ZTUNNEL_UDS_ADDRESS", "/" + "é" * 60, "at most 107 bytes"),
        ("CNI_AGENT_RUN_DIR", "/" + "x" * 90, "at most 90 bytes"),
        ("CNI_AGENT_RUN_DIR", "", "absolute path"),
        ("POD_MANIFESTS", "", "a path is expected"),
        ("NODE_NAME", "", "at most 253 characters"),
        ("NODE_NAME", "Node", "at most 253 characters"),
        ("SYSTEM_NAMESPACE", "a" * 64, "at most 63 characters"),
        ("SYSTEM_NAMESPACE", "a/b", "at most 63 characters"),
        ("EXCLUDE_NAMESPACES", "kube-system;other", "comma-separated list of namespaces"),
        ("AMBIENT_ENABLEMENT_SELECTOR", "{", ""),
        ("AMBIENT_DNS_CAPTURE", "yes", "1 t T TRUE true True 0 f F FALSE false False"),
        ("AMBIENT_IPV6", "", "boolean"),
        ("HOST_PROBE_SNAT_IP", "fd00::1", "IPv4"),
        ("HOST_PROBE_SNAT_IP", "127.0.0.1", "unicast IPv4"),
        ("HOST_PROBE_SNAT_IPV6", "169.254.7.127", "IPv6"),
        ("HOST_PROBE_SNAT_IPV6", "fe80::1%eth0", "IPv6"),
        ("ZDS_PEER_UIDS", "", "numeric user ids"),
        ("ZDS_PEER_UIDS", "root", "numeric user ids"),
        ("ZDS_PEER_UIDS", "4294967295", "numeric user ids"),
        ("VERIFY_INTERVAL", "0", "positive number of seconds"),
        ("VERIFY_INTERVAL", "nan", "positive number of seconds"),
        ("VERIFY_INTERVAL", "inf", "positive number of seconds"),
        ("VERIFY_INTERVAL", "1m", "positive number of seconds"),
        ("LOG_LEVEL", "INFO", "debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "auto, console, json"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(variable: str, value: str, expected: str) -> None:
    """The line has both names of the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        load({}, {variable: value})
    line = str(caught.value)
    flag = "--" + variable.lower().replace("_", "-")
    assert line.startswith(f'{variable} ({flag}) is "{value[:80]}')
    assert expected in line
    assert "\n" not in line


def test_a_wrong_value_cannot_write_on_the_terminal() -> None:
    """Control characters in a value are spelled out, and a long one is cut short."""
    with pytest.raises(SettingError) as caught:
        load({"log_level": "\x1b[2J\n" + "x" * 1000}, {})
    assert '"\\x1b[2J\\nxxx' in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_longest_paths_that_fit_are_taken() -> None:
    """A Unix socket's path may have 107 bytes, those of the agent's sockets too."""
    settings = load({"ztunnel_uds_address": "/" + "x" * 106, "cni_agent_run_dir": "/" * 90}, {})
    assert len(settings.ztunnel_uds_address) == 107
    assert max(len(settings.admin_socket), len(settings.plugin_socket)) <= 107


def test_lists_are_read_leniently() -> None:
    """White space and empty items in a list mean nothing; an empty list excludes no namespace."""
    settings = load({"exclude_namespaces": " a, b ,", "zds_peer_uids": "0, 1337"}, {})
    assert settings.exclude_namespaces == {"a", "b"}
    assert settings.zds_peer_uids == {0, 1337}
    assert load({"exclude_namespaces": ""}, {}).exclude_namespaces == frozenset()
    named = load({}, {"CNI_LET_THROUGH_NAMESPACES": "istio-system"})
    assert named.cni_let_through_namespaces == {"istio-system"}
    assert load({}, {}).cni_let_through_namespaces == frozenset()


def test_values_have_the_types_that_the_rules_need() -> None:
    """Addresses, numbers and selectors are parsed once, here."""
    settings = load(
        {
            "host_probe_snat_ip": "10.1.1.1",
            "verify_interval": "0.5",
            "ambient_ipv6": "f",
            "ambient_enablement_selector": "- podSelector: {matchLabels: {mesh: 'on'}}",
        },
        {},
    )
    assert settings.host_probe_snat_ip == IPv4Address("10.1.1.1")
    assert settings.verify_interval == 0.5
    assert not settings.ambient_ipv6
    assert [str(pair.pods) for pair in settings.ambient_enablement_selector] == ["mesh=on"]


def test_manifests_that_are_not_named_are_asked_for() -> None:
    """Whoever wants to see a pod's rules is told where the pod should come from."""
    with pytest.raises(SettingError, match=r"POD_MANIFESTS \(--pod-manifests\) is not set"):
        config.require_manifests(load({}, {}))
    assert config.require_manifests(load({"pod_manifests": "pods"}, {})) == "pods"


def test_the_hosts_paths_are_under_the_prefix() -> None:
    """A containerised agent has the host's files in another place; a bare host's are plain."""
    assert load({"host_prefix": "/host/"}, {}).on_host("/proc") == "/host/proc"
    assert load({"host_prefix": "/"}, {}).on_host("/proc") == "/proc"
    assert load({"host_prefix": ""}, {}).on_host("/proc") == "/proc"


def test_what_kubelet_calls_an_endpoint_is_taken() -> None:
    """CONTAINER_RUNTIME_ENDPOINT is a path or a unix:// URL, as in kubelet's own settings."""
    for text in ("/run/crio/crio.sock", "unix:///run/crio/crio.sock"):
        assert load({"container_runtime_endpoint": text}, {}).container_runtime_endpoint == (
            "/run/crio/crio.sock"
        )
    assert load({"container_runtime_endpoint": ""}, {}).container_runtime_endpoint == ""


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("host_prefix", "host"),
        ("container_runtime_endpoint", "tcp://10.0.0.1:1234"),
        ("readiness_address", "8000"),
        ("monitoring_port", "65536"),
        ("monitoring_port", ":80"),
        ("readiness_address", ":0"),
        ("readiness_address", ":65536"),
        ("cni_conf_name", "net.d/10-a.conflist"),
        ("istio_owned_cni_config_filename", ".."),
        ("startup_taint", "not a key"),
        ("pod_namespace", "Upper"),
    ],
)
def test_settings_of_the_cluster_are_checked(attribute: str, text: str) -> None:
    """A slip in a manifest is named with its variable when the agent starts."""
    with pytest.raises(SettingError, match=attribute.upper()):
        load({attribute: text}, {})
