{{- define "nodeagent.name" -}}
nodeagent{{ with .Values.revision }}-{{ . }}{{ end }}
{{- end }}

{{- define "nodeagent.labels" -}}
app.kubernetes.io/name: nodeagent
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "nodeagent.platform" -}}
{{ coalesce .Values.platform .Values.global.platform "none" }}
{{- end }}

{{- define "nodeagent.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.agentImage.repository }}:{{ .Values.agentImage.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* What is mounted to have a directory: all that is above a link that an upgrade turns. */ -}}
{{- define "nodeagent.mount" -}}
{{- if hasPrefix "/var/lib/rancher/k3s/data/" . -}}/var/lib/rancher/k3s/data
{{- else if hasPrefix "/var/snap/microk8s/" . -}}/var/snap/microk8s
{{- else -}}{{ . }}
{{- end -}}
{{- end }}

{{- /* The host's directories of CNI configurations and plugins. */ -}}
{{- define "nodeagent.directories" -}}
{{- $platform := include "nodeagent.platform" . -}}
{{- $known := dict
    "gke" (dict "bin" "/home/kubernetes/bin")
    "k3s" (dict "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d" "bin" "/var/lib/rancher/k3s/data/cni")
    "openshift" (dict "conf" "/etc/cni/multus/net.d" "bin" "/var/lib/cni/bin")
    "microk8s" (dict "conf" "/var/snap/microk8s/current/args/cni-network" "bin" "/var/snap/microk8s/current/opt/cni/bin")
-}}
{{- $here := get $known $platform | default dict -}}
conf: {{ coalesce .Values.cniConfDir $here.conf "/etc/cni/net.d" }}
bin: {{ coalesce .Values.cniBinDir $here.bin "/opt/cni/bin" }}
{{- end }}

{{- /* `default:info,cni:debug` and its like, as the agent calls the most talkative level of it. */ -}}
{{- define "nodeagent.logLevel" -}}
{{- $given := coalesce .Values.logging.level .Values.global.logging.level "info" -}}
{{- if contains "debug" $given -}}debug
{{- else if contains "info" $given -}}info
{{- else if contains "warn" $given -}}warning
{{- else if regexMatch "(error|fatal|none)" $given -}}error
{{- else -}}{{ fail (printf "logging.level is %q: debug, info, warn or error is expected, with scopes or without" $given) }}
{{- end -}}
{{- end }}

{{- /* The settings that are not as the agent has them by itself. */ -}}
{{- define "nodeagent.environment" -}}
{{- $directories := include "nodeagent.directories" . | fromYaml -}}
HOST_PREFIX: /host
CNI_NET_DIR: {{ $directories.conf }}
CNI_BIN_DIR: {{ $directories.bin }}
{{- if .Values.global.nativeNftables }}
XTABLES_LOCKFILE: /var/run/istio-cni/xtables.lock
{{- else }}
NATIVE_NFTABLES: "false"
XTABLES_LOCKFILE: /run/xtables.lock
{{- end }}
{{- if eq (include "nodeagent.platform" .) "microk8s" }}
CONTAINER_RUNTIME_ENDPOINT: /host/var/snap/microk8s/common/run/containerd.sock
{{- end }}
{{- if not .Values.ambient.enabled }}
AMBIENT_ENABLED: "false"
{{- end }}
{{- if not .Values.ambient.dnsCapture }}
AMBIENT_DNS_CAPTURE: "false"
{{- end }}
{{- if not .Values.ambient.ipv6 }}
AMBIENT_IPV6: "false"
{{- end }}
{{- if ne (join "," .Values.excludeNamespaces) "kube-system" }}
EXCLUDE_NAMESPACES: {{ join "," .Values.excludeNamespaces | quote }}
{{- end }}
{{- with .Values.cniConfFileName }}
CNI_CONF_NAME: {{ . | quote }}
{{- end }}
{{- if not .Values.chained }}
CHAINED_CNI_PLUGIN: "false"
{{- end }}
{{- if not .Values.istioOwnedCNIConfig }}
ISTIO_OWNED_CNI_CONFIG: "false"
{{- end }}
{{- with .Values.istioOwnedCNIConfigFileName }}
ISTIO_OWNED_CNI_CONFIG_FILENAME: {{ . | quote }}
{{- end }}
{{- if ne (include "nodeagent.logLevel" .) "info" }}
LOG_LEVEL: {{ include "nodeagent.logLevel" . }}
{{- end }}
{{- if not .Values.global.logAsJson }}
LOG_FORMAT: console
{{- end }}
{{- with .Values.letThroughNamespaces }}
CNI_LET_THROUGH_NAMESPACES: {{ join "," . | quote }}
{{- end }}
{{- if .Values.startupTaint.enabled }}
REMOVE_STARTUP_TAINT: "true"
{{- if ne .Values.startupTaint.key "cni.istio.io/not-ready" }}
STARTUP_TAINT: {{ .Values.startupTaint.key }}
{{- end }}
{{- end }}
{{- if .Values.uninstall.releasePods }}
RELEASE_PODS_ON_UNINSTALL: "true"
{{- end }}
{{- if .Values.uninstall.removalGrace }}
REMOVAL_GRACE: {{ .Values.uninstall.removalGrace | quote }}
{{- end }}
{{- end }}
