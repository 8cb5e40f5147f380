{{- define "deepcoder.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Full name of the release's objects, short enough to append suffixes. Fails if a Service may not have it. */}}
{{- define "deepcoder.fullname" -}}
{{- $name := include "deepcoder.anyFullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the release's objects would be named %s, and a Service's name begins with a letter and has only letters, digits and dashes: set fullnameOverride, or give the release another name" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "deepcoder.anyFullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "deepcoder.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else if hasPrefix (printf "%s-" .Release.Name) (include "deepcoder.name" .) -}}
{{- include "deepcoder.name" . -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "deepcoder.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "deepcoder.selectorLabels" -}}
app.kubernetes.io/name: {{ include "deepcoder.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "deepcoder.labels" -}}
{{ include "deepcoder.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/*
Labels of a pod: those that select it, what it is, the user's. Call with (list root component selectorLabels). The
command line finds the pods by deepcoder.dev/component, whatever nameOverride says. It is in no selector, because a
Deployment's cannot be changed by an upgrade.
*/}}
{{- define "deepcoder.podLabels" -}}
{{- $component := dict "deepcoder.dev/component" (index . 1) -}}
{{- merge $component (index . 2 | fromYaml) (default dict (index . 0).Values.podLabels) | toYaml -}}
{{- end -}}

{{- define "deepcoder.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "deepcoder.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "deepcoder.tlsSecretName" -}}
{{- default (printf "%s-progress-tls" (include "deepcoder.fullname" .)) .Values.progress.tlsSecretName -}}
{{- end -}}

{{/* Image reference: the value, or <name>:<appVersion>. Call with (list root value name). */}}
{{- define "deepcoder.image" -}}
{{- $root := index . 0 -}}
{{- default (printf "%s:%s" (index . 2) $root.Chart.AppVersion) (index . 1) -}}
{{- end -}}

{{/* Environment of the operator and the dashboard: the user's variables, and the certificate authorities to trust. */}}
{{- define "deepcoder.env" -}}
{{- with .Values.env }}
{{- toYaml . }}
{{- end }}
{{- if (.Values.caBundle).configMapName }}
- {name: SSL_CERT_FILE, value: /etc/deepcoder-ca/{{ .Values.caBundle.key }}}
- {name: REQUESTS_CA_BUNDLE, value: /etc/deepcoder-ca/{{ .Values.caBundle.key }}}
- {name: AWS_CA_BUNDLE, value: /etc/deepcoder-ca/{{ .Values.caBundle.key }}}
{{- end }}
{{- end -}}

{{- define "deepcoder.caMount" -}}
{{- if (.Values.caBundle).configMapName }}
- {name: ca, mountPath: /etc/deepcoder-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "deepcoder.caVolume" -}}
{{- with (.Values.caBundle).configMapName }}
- name: ca
  configMap:
    name: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Who may read metrics, besides the kubelet with its probes: Prometheus, and the pod of `helm test`. */}}
{{- define "deepcoder.scrapers" -}}
{{- with .Values.networkPolicy.monitoringNamespace -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . | quote }}
{{ end -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/instance: {{ .Release.Name | quote }}
      app.kubernetes.io/component: test
{{- end -}}

{{/* Label deepcoder_release of the operator's series, by which the alerts of several releases are told apart. */}}
{{- define "deepcoder.release" -}}
{{ .Release.Namespace }}/{{ .Release.Name }}
{{- end -}}

{{/* Call with (list root value) before creating a monitor or alerts: fails if NetworkPolicies would keep Prometheus out. */}}
{{- define "deepcoder.letsPrometheusIn" -}}
{{- $root := index . 0 -}}
{{- if not $root.Values.networkPolicy.monitoringNamespace -}}
{{- fail (printf "%s.enabled is true, and NetworkPolicies let no Prometheus in: name its namespace in networkPolicy.monitoringNamespace" (index . 1)) -}}
{{- end -}}
{{- end -}}

{{/* The operator's configuration; its config.py describes the fields. */}}
{{- define "deepcoder.config" -}}
namespace: {{ .Release.Namespace | quote }}
podLabels:
  {{- include "deepcoder.selectorLabels" . | nindent 2 }}
lease: {{ include "deepcoder.fullname" . | quote }}
watchNamespaces: {{ toJson (default list .Values.watchNamespaces) }}
{{- with .Values.networkPolicy.monitoringNamespace }}
monitoringNamespace: {{ . | quote }}
{{- end }}
kuberayNamespace: {{ .Values.kuberay.namespace | quote }}
{{- if kindIs "invalid" .Values.runAsUser }}
fixedUser: false
{{- end }}
healthPort: 8080
images:
  trainer: {{ include "deepcoder.image" (list . .Values.images.trainer "deepcoder-trainer") | quote }}
  sandbox: {{ include "deepcoder.image" (list . .Values.images.sandbox "deepcoder-sandbox") | quote }}
progress:
  url: {{ printf "https://%s-progress.%s.svc:%v" (include "deepcoder.fullname" .) .Release.Namespace .Values.progress.port }}
  port: 8443
  tlsSecret: {{ include "deepcoder.tlsSecretName" . | quote }}
  authentication: {{ ternary "JWKS" "TokenReview" (not (empty .Values.watchNamespaces)) }}
storage:
  allowedEndpoints: {{ toJson (default list .Values.s3.allowedEndpoints) }}
prices: {{ toJson (default list .Values.prices) }}
{{- end -}}
