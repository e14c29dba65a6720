{{/* Where etcd is, and who one is there. */}}

{{- define "etcd-pd.etcd.own" -}}
{{- if not .Values.etcd.external.endpoints }}true{{ end -}}
{{- end -}}

{{/* X.Y.Z of the chart's own etcd, whatever follows in its tag; empty where the tag does not tell. */}}
{{- define "etcd-pd.etcd.version" -}}
{{- if and (include "etcd-pd.etcd.own" .) (not .Values.etcd.image.digest) -}}
{{ regexFind "^v?[0-9]+\\.[0-9]+\\.[0-9]+" .Values.etcd.image.tag | trimPrefix "v" }}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.etcd.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled -}}
{{- end -}}

{{/* DNS name of a member. Call with (dict "root" $ "number" N). */}}
{{- define "etcd-pd.etcd.host" -}}
{{- $full := include "etcd-pd.fullname" .root -}}
{{ printf "%s-etcd-%d.%s-etcd-peers.%s.svc.%s" $full (int .number) $full .root.Release.Namespace .root.Values.clusterDomain }}
{{- end -}}

{{/* NAME=URL of every member, with commas between. */}}
{{- define "etcd-pd.etcd.initialCluster" -}}
{{- $members := list -}}
{{- range $number := until (int .Values.etcd.replicas) -}}
{{- $host := include "etcd-pd.etcd.host" (dict "root" $ "number" $number) -}}
{{- $members = append $members (printf "%s-etcd-%d=%s://%s:2380" (include "etcd-pd.fullname" $) $number (include "etcd-pd.etcd.scheme" $) $host) -}}
{{- end -}}
{{ join "," $members }}
{{- end -}}

{{- define "etcd-pd.etcd.endpoints" -}}
{{- if .Values.etcd.external.endpoints -}}
{{ join "," .Values.etcd.external.endpoints }}
{{- else -}}
{{- $endpoints := list -}}
{{- range $number := until (int .Values.etcd.replicas) -}}
{{- $host := include "etcd-pd.etcd.host" (dict "root" $ "number" $number) -}}
{{- $endpoints = append $endpoints (printf "%s://%s:2379" (include "etcd-pd.etcd.scheme" $) $host) -}}
{{- end -}}
{{ join "," $endpoints }}
{{- end -}}
{{- end -}}

{{/* Names that the members' certificate must carry: each by itself, since etcd checks wildcards by reverse lookups. */}}
{{- define "etcd-pd.etcd.serverNames" -}}
{{- $full := include "etcd-pd.fullname" . -}}
{{- $names := list "localhost" "127.0.0.1" (printf "%s-etcd.%s.svc" $full .Release.Namespace) -}}
{{- range $number := until (int .Values.etcd.replicas) -}}
{{- $names = append $names (include "etcd-pd.etcd.host" (dict "root" $ "number" $number)) -}}
{{- end -}}
{{ join "," $names }}
{{- end -}}

{{/* Secret with an identity's certificate. Call with (dict "root" $ "identity" etcd|root|prefill|decode). */}}
{{- define "etcd-pd.secret" -}}
{{- get .root.Values.tls.existingSecrets .identity | default (printf "%s-%s-tls" (include "etcd-pd.fullname" .root) .identity) -}}
{{- end -}}

{{/* Whether cert-manager makes certificates. */}}
{{- define "etcd-pd.certManager" -}}
{{- if and .Values.tls.enabled .Values.tls.certManager.issuer.name }}true{{ end -}}
{{- end -}}

{{/* Whether the chart makes certificates: unless cert-manager does, or all that are used are given. */}}
{{- define "etcd-pd.makesCertificates" -}}
{{- $given := .Values.tls.existingSecrets -}}
{{- $needed := list "prefill" "decode" -}}
{{- if include "etcd-pd.etcd.own" . }}{{ $needed = concat $needed (list "etcd" "root") }}{{ end -}}
{{- if and .Values.tls.enabled (include "etcd-pd.etcd.own" .) (not (include "etcd-pd.certManager" .)) -}}
{{- range $needed }}{{ if not (get $given .) }}true{{ end }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Environment by which a process of ours reaches etcd. Call with (dict "root" $ "identity" NAME). */}}
{{- define "etcd-pd.etcd.env" -}}
{{- $values := .root.Values -}}
- name: ETCD_PD_ETCD
  value: {{ include "etcd-pd.etcd.endpoints" .root }}
- name: ETCD_PD_ROOT
  value: {{ include "etcd-pd.root" .root }}
{{- if $values.tls.enabled }}
- name: ETCD_PD_ETCD_CA_FILE
  value: /etc/etcd-pd/tls/{{ .identity }}/ca.crt
- name: ETCD_PD_ETCD_CERT_FILE
  value: /etc/etcd-pd/tls/{{ .identity }}/tls.crt
- name: ETCD_PD_ETCD_KEY_FILE
  value: /etc/etcd-pd/tls/{{ .identity }}/tls.key
{{- end }}
{{- if and $values.auth.enabled $values.auth.passwordSecret }}
- name: ETCD_PD_ETCD_USERNAME
  value: {{ get $values.auth.users .identity }}
- name: ETCD_PD_ETCD_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $values.auth.passwordSecret }}
      key: {{ .identity }}
{{- end }}
- name: ETCD_PD_ETCD_REQUEST_TIMEOUT_SECONDS
  value: {{ $values.agent.settings.etcdRequestTimeoutSeconds | quote }}
{{- include "etcd-pd.logEnv" .root }}
{{- end -}}

{{- define "etcd-pd.logEnv" }}
- name: ETCD_PD_LOG_LEVEL
  value: {{ .Values.agent.logLevel }}
- name: ETCD_PD_LOG_FORMAT
  value: {{ .Values.agent.logFormat }}
{{- end -}}

{{/* Mount and volume of an identity's certificate. A pod waits until its Secret is there. */}}
{{- define "etcd-pd.tls.mount" -}}
{{- if .root.Values.tls.enabled -}}
- name: tls-{{ .identity }}
  mountPath: /etc/etcd-pd/tls/{{ .identity }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "etcd-pd.tls.volume" -}}
{{- if .root.Values.tls.enabled -}}
- name: tls-{{ .identity }}
  secret:
    secretName: {{ include "etcd-pd.secret" . }}
    defaultMode: 0440
{{- end }}
{{- end -}}
