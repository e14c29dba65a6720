{{/* Names, labels and images. */}}

{{- define "etcd-pd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Names of objects leave room for suffixes: one of more than 40 characters is cut, and told from its like by a hash. */}}
{{- define "etcd-pd.fullname" -}}
{{- $name := include "etcd-pd.name" . -}}
{{- $full := .Values.fullnameOverride | default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) -}}
{{- if gt (len $full) 40 -}}
{{ trunc 31 $full | trimSuffix "-" }}-{{ sha256sum $full | trunc 8 }}
{{- else -}}
{{ $full | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* A service account. Call with (dict "root" $ "suffix" SUFFIX). */}}
{{- define "etcd-pd.account" -}}
{{- .root.Values.serviceAccount.name | default (include "etcd-pd.fullname" .root) }}{{ with .suffix }}-{{ . }}{{ end -}}
{{- end -}}

{{/* What selectors match: immutable, so nothing in it may change with the chart's version. */}}
{{- define "etcd-pd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "etcd-pd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels of an object: the chart's own go before those of the values. Call with (dict "root" $ "component" NAME "labels" VALUES). */}}
{{- define "etcd-pd.labels" -}}
{{- $labels := include "etcd-pd.podLabels" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{ toYaml $labels }}
{{- end -}}

{{/* Labels of pods: without versions, so that a new chart alone restarts no engine. Arguments as above. */}}
{{- define "etcd-pd.podLabels" -}}
{{- $own := include "etcd-pd.selectorLabels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/component" .component -}}
{{ mergeOverwrite dict .root.Values.commonLabels (.labels | default dict) $own | toYaml }}
{{- end -}}

{{/* metadata of an object. Call with (dict "root" $ "component" NAME "suffix" SUFFIX "labels" VALUES). */}}
{{- define "etcd-pd.metadata" -}}
name: {{ include "etcd-pd.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "etcd-pd.labels" . | nindent 2 }}
{{- end -}}

{{/* Annotations, of which those of the values go before the chart's own. Call with (dict "own" MAP "values" VALUES). */}}
{{- define "etcd-pd.annotations" -}}
{{- with mergeOverwrite dict (.own | default dict) .values -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
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

{{/* What a container may: nothing, but for what values say. Call with those. */}}
{{- define "etcd-pd.noPrivileges" -}}
{{- $nothing := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{ mergeOverwrite $nothing . | toYaml }}
{{- end -}}

{{/* Security context of a pod: its user and groups, where the platform does not give them, and what values say.
     Call with (dict "root" $ "user" UID "group" GID "fsGroup" GID "values" VALUES); groups are the uid where left out. */}}
{{- define "etcd-pd.podSecurity" -}}
{{- $context := dict "runAsNonRoot" (ne (int .user) 0) "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if not .root.Values.openshift -}}
{{- $ids := dict "runAsUser" .user "runAsGroup" (hasKey . "group" | ternary .group .user) "fsGroup" (hasKey . "fsGroup" | ternary .fsGroup .user) -}}
{{- $context = mergeOverwrite $context $ids -}}
{{- end -}}
{{ mergeOverwrite $context .values | toYaml }}
{{- end -}}

{{/* A quantity in Mi, Gi or Ti as bytes. */}}
{{- define "etcd-pd.bytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[MGT]i$" . -}}
{{- $power := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul $number (get $power $unit | int64) -}}
{{- end -}}
