"""Istio's chart of istio-cni (1.27 to 1.31) as the plain objects that it yields, by profile.

Written down from what its objects are; not a line is the chart's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

IMAGE = "nodeagent:0.1.0"
"""What the operator puts in the place of Istio's."""
NAMESPACE = "istio-system"
CAPABILITIES = ("NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE")
MOUNTS = {
    "/host/opt/cni/bin": "/opt/cni/bin",
    "/host/etc/cni/net.d": "/etc/cni/net.d",
    "/host/proc": "/proc",
    "/host/var/run/netns": "/var/run/netns",
    "/var/run/istio-cni": "/var/run/istio-cni",
    "/var/run/ztunnel": "/var/run/ztunnel",
}
"""In the container, and on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Values of the chart, as far as they change what the agent is given."""

    name: str
    nftables: bool = False
    host_network: bool = False
    own_configuration: bool = False
    revision: str = ""
    openshift: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def account(self) -> str:
        """The name of ServiceAccount, ConfigMap (with ``-config``) and roles."""
        return f"istio-cni-{self.revision}" if self.revision else "istio-cni"

    @property
    def daemonset(self) -> str:
        return f"{self.account}-node"

    def arguments(self) -> list[str]:
        return ["--log_output_level=default:info,cni:info"]

    def data(self) -> dict[str, str]:
        """The ConfigMap that becomes the environment."""
        data = {
            "CURRENT_AGENT_VERSION": "1.31.0",
            "AMBIENT_ENABLED": "true",
            "AMBIENT_DNS_CAPTURE": "true",
            "AMBIENT_IPV6": "true",
            "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "true",
            "AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE": "true",
            "CHAINED_CNI_PLUGIN": "true",
            "EXCLUDE_NAMESPACES": "kube-system",
            "REPAIR_ENABLED": "true",
            "REPAIR_LABEL_PODS": "false",
            "REPAIR_DELETE_PODS": "false",
            "REPAIR_REPAIR_PODS": "true",
            "REPAIR_INIT_CONTAINER_NAME": "istio-validation",
            "REPAIR_BROKEN_POD_LABEL_KEY": "cni.istio.io/uninitialized",
            "REPAIR_BROKEN_POD_LABEL_VALUE": "true",
            "NATIVE_NFTABLES": str(self.nftables).lower(),
        }
        if self.own_configuration:
            data |= {
                "ISTIO_OWNED_CNI_CONFIG": "true",
                "ISTIO_OWNED_CNI_CONF_FILENAME": "02-istio-cni.conflist",
            }
        return data

    def environ(self, *, node: str, pod: str) -> dict[str, str]:
        """The container's environment, when kubelet has filled it in."""
        fields = {
            "REPAIR_NODE_NAME": node,
            "NODE_NAME": node,
            "POD_NAME": pod,
            "POD_NAMESPACE": NAMESPACE,
            "GOMEMLIMIT": "104857600",
            "GOMAXPROCS": "2",
        }
        return self.data() | self._fixed() | fields

    def objects(self) -> list[Object]:
        """All of them, but for the namespace."""
        return [
            self._object("v1", "ServiceAccount", self.account),
            {**self._object("v1", "ConfigMap", f"{self.account}-config"), "data": self.data()},
            *self._role("", [_rule("", ["pods", "nodes", "namespaces"], ["get", "list", "watch"])]),
            *self._role(
                "-repair-role",
                [
                    _rule("", ["events"], ["create", "patch"]),
                    _rule("", ["pods"], ["watch", "get", "list"]),
                ],
            ),
            *self._role(
                "-ambient",
                [
                    _rule("", ["pods/status"], ["patch", "update"]),
                    {
                        **_rule("apps", ["daemonsets"], ["get"]),
                        "resourceNames": [self.daemonset],
                    },
                ],
            ),
            self._daemonset(),
        ]

    def _fixed(self) -> dict[str, str]:
        fixed = {
            "REPAIR_RUN_AS_DAEMON": "true",
            "REPAIR_SIDECAR_ANNOTATION": "sidecar.istio.io/status",
        }
        return fixed if self.host_network else fixed | {"ALLOW_SWITCH_TO_HOST_NS": "true"}

    def _object(self, version: str, kind: str, name: str) -> Object:
        metadata: Object = {"name": name, "labels": {"app.kubernetes.io/name": "istio-cni"}}
        if not kind.startswith("Cluster"):
            metadata["namespace"] = NAMESPACE
        return {"apiVersion": version, "kind": kind, "metadata": metadata}

    def _role(self, suffix: str, rules: list[Object]) -> list[Object]:
        version, name = "rbac.authorization.k8s.io/v1", f"{self.account}{suffix}"
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": self.account, "namespace": NAMESPACE}
        binding = self._object(version, "ClusterRoleBinding", name)
        return [
            {**self._object(version, "ClusterRole", name), "rules": rules},
            {**binding, "roleRef": role, "subjects": [subject]},
        ]

    def _daemonset(self) -> Object:
        selector = {"k8s-app": self.daemonset}
        labels = {**selector, "istio.io/dataplane-mode": "none", "sidecar.istio.io/inject": "false"}
        scraped = {"scrape": "true", "port": "15014", "path": "/metrics"}
        security: Object = {
            "appArmorProfile": {"type": "Unconfined"},
            "privileged": False,
            "runAsGroup": 0,
            "runAsUser": 0,
            "runAsNonRoot": False,
            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
        }
        if self.openshift:
            security["seLinuxOptions"] = {"type": "spc_t"}
        names = {path: f"v{number}" for number, path in enumerate(MOUNTS)}
        container: Object = {
            "name": "install-cni",
            "image": IMAGE,
            "command": ["install-cni"],
            "args": self.arguments(),
            "ports": [{"containerPort": 15014, "name": "metrics", "protocol": "TCP"}],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8000}},
            "securityContext": security,
            "envFrom": [{"configMapRef": {"name": f"{self.account}-config"}}],
            "env": [
                *({"name": name, "value": value} for name, value in self._fixed().items()),
                _field("REPAIR_NODE_NAME", "spec.nodeName"),
                _field("NODE_NAME", "spec.nodeName"),
                _field("POD_NAME", "metadata.name"),
                _field("POD_NAMESPACE", "metadata.namespace"),
            ],
            "volumeMounts": [{"mountPath": path, "name": names[path]} for path in MOUNTS],
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
        }
        spec: Object = {
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "system-node-critical",
            "serviceAccountName": self.account,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": [
                {"name": names[path], "hostPath": {"path": on_host}}
                for path, on_host in MOUNTS.items()
            ],
        }
        if self.host_network:
            spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        annotations = {f"prometheus.io/{key}": value for key, value in scraped.items()}
        template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}
        return {
            **self._object("apps/v1", "DaemonSet", self.daemonset),
            "spec": {
                "selector": {"matchLabels": selector},
                "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}},
                "template": template,
            },
        }


PROFILES = (
    Profile(name="iptables"),
    Profile(name="nftables", nftables=True),
    Profile(name="host network", host_network=True),
    Profile(name="own configuration", own_configuration=True),
    Profile(name="revision", revision="canary"),
    Profile(name="openshift", openshift=True),
)


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _field(name: str, path: str) -> Mapping[str, object]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
