{{/* Names, labels and images. */}}

{{- define "etcd-pd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "etcd-pd.fullname" -}}
{{- $name := include "etcd-pd.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selectors match: immutable, so nothing in it may change with the chart's version. */}}
{{- define "etcd-pd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "etcd-pd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Call with (dict "root" $ "component" NAME). */}}
{{- define "etcd-pd.labels" -}}
{{ include "etcd-pd.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without versions, so that a new chart alone restarts no engine. Arguments as above. */}}
{{- define "etcd-pd.podLabels" -}}
{{ include "etcd-pd.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. Call with (dict "root" $ "component" NAME "suffix" SUFFIX). */}}
{{- define "etcd-pd.metadata" -}}
name: {{ include "etcd-pd.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "etcd-pd.labels" . | nindent 2 }}
{{- end -}}

{{/* Whether a repository begins with a registry already, as container engines tell: a dot, a colon, or localhost. */}}
{{- define "etcd-pd.image.full" -}}
{{- $first := splitList "/" . | first -}}
{{- if and (contains "/" .) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) }}true{{ end -}}
{{- end -}}

{{/* The registry of an image: its own, or global.imageRegistry. etcd's own repository is on quay.io where neither is given.
     Empty where the repository names one, and where nothing does. Call with (dict "root" $ "image" VALUES). */}}
{{- define "etcd-pd.image.registry" -}}
{{- $known := ternary "quay.io" "" (eq .image.repository "coreos/etcd") -}}
{{- if .image.registry -}}
{{ .image.registry }}
{{- else if not (include "etcd-pd.image.full" .image.repository) -}}
{{ .root.Values.global.imageRegistry | default $known }}
{{- end -}}
{{- end -}}

{{/* An image's reference. Arguments as above. */}}
{{- define "etcd-pd.image" -}}
{{- with include "etcd-pd.image.registry" . }}{{ . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest -}}
@{{ .image.digest }}
{{- else -}}
:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.root" -}}
{{- .Values.root | default (printf "/etcd_pd/%s/%s" .Release.Namespace .Release.Name) -}}
{{- end -}}

{{/* Services would put variables into the environment that look like settings: ETCD_PD_PORT, for one. */}}
{{- define "etcd-pd.podDefaults" -}}
enableServiceLinks: false
{{- include "etcd-pd.pullSecrets" . }}
{{- end -}}

{{/* What every container may: nothing. */}}
{{- define "etcd-pd.noPrivileges" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* User and groups of a pod of ours that is no engine. Call with a uid. */}}
{{- define "etcd-pd.podUser" -}}
runAsNonRoot: {{ ne (int .) 0 }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* A quantity in Mi, Gi or Ti as bytes. */}}
{{- define "etcd-pd.bytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[MGT]i$" . -}}
{{- $power := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul $number (get $power $unit | int64) -}}
{{- end -}}
