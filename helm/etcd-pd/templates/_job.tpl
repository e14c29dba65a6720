{{/* The pod of a job of ours. Call with (dict "root" $ "component" NAME "command" COMMAND "env" YAML "identity" NAME).
     Only these pods, and the router's, get a token for the Kubernetes API. */}}
{{- define "etcd-pd.job.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "etcd-pd.podLabels" . | nindent 4 }}
spec:
  {{- include "etcd-pd.podDefaults" $root | nindent 2 }}
  serviceAccountName: {{ include "etcd-pd.fullname" $root }}{{ with .account }}-{{ . }}{{ end }}
  automountServiceAccountToken: {{ ne .account "" }}
  restartPolicy: OnFailure
  securityContext:
    {{- include "etcd-pd.podUser" 65532 | nindent 4 }}
  containers:
    - name: {{ .component }}
      image: {{ include "etcd-pd.image" (dict "root" $root "image" $root.Values.agent.image) }}
      imagePullPolicy: {{ $root.Values.agent.image.pullPolicy }}
      command: [etcd-pd, {{ .command }}]
      env:
        {{- .env | nindent 8 }}
      securityContext:
        {{- include "etcd-pd.noPrivileges" $root | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if .identity }}
        {{- with include "etcd-pd.tls.mount" . }}{{ nindent 8 . }}{{ end }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if .identity }}
    {{- with include "etcd-pd.tls.volume" . }}{{ nindent 4 . }}{{ end }}
    {{- end }}
{{- end -}}

{{/* An ordinary Job, named by its pod: a changed one is a new Job, an unchanged one stays. Hooks would not do: Helm waits
     for them before it starts what they wait for. Call with (dict "root" $ "component" NAME "pod" YAML). */}}
{{- define "etcd-pd.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- $suffix := printf "%s-%s" .component (sha256sum .pod | trunc 8) }}
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" $suffix) | nindent 2 }}
spec:
  backoffLimit: 100
  template:
    {{- .pod | nindent 4 }}
{{- end -}}

{{/* Settings of `etcd-pd certs`. Call with (dict "root" $ "clients" LIST). */}}
{{- define "etcd-pd.certs.env" -}}
- name: ETCD_PD_NAMESPACE
  value: {{ .root.Release.Namespace }}
- name: ETCD_PD_AUTHORITY_SECRET
  value: {{ include "etcd-pd.fullname" .root }}-ca
- name: ETCD_PD_SERVER_SECRET
  value: {{ include "etcd-pd.secret" (dict "root" .root "identity" "etcd") }}
- name: ETCD_PD_SERVER_NAMES
  value: {{ include "etcd-pd.etcd.serverNames" .root }}
- name: ETCD_PD_CLIENT_SECRETS
  value: {{ join "," .clients }}
- name: ETCD_PD_SECRET_LABELS
  value: {{ include "etcd-pd.selectorLabels" .root | fromYaml | toJson | trimAll "{}" | replace "\"" "" | replace ":" "=" }}
- name: ETCD_PD_VALIDITY_DAYS
  value: {{ .root.Values.tls.validityDays | quote }}
- name: ETCD_PD_RENEW_BEFORE_DAYS
  value: {{ .root.Values.tls.renewBeforeDays | quote }}
- name: ETCD_PD_AUTHORITY_VALIDITY_DAYS
  value: {{ .root.Values.tls.authorityValidityDays | quote }}
{{- include "etcd-pd.logEnv" .root }}
{{- end -}}

{{/* Settings of `etcd-pd etcd-init`. */}}
{{- define "etcd-pd.init.env" -}}
{{- include "etcd-pd.etcd.env" (dict "root" . "identity" "root") }}
{{- if and .Values.auth.enabled .Values.auth.init }}
- name: ETCD_PD_PREFILL_USER
  value: {{ .Values.auth.users.prefill }}
- name: ETCD_PD_DECODE_USER
  value: {{ .Values.auth.users.decode }}
{{- if .Values.auth.passwordSecret }}
{{- range $variable, $key := dict "ROOT" "root" "PREFILL" "prefill" "DECODE" "decode" }}
- name: ETCD_PD_{{ $variable }}_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.auth.passwordSecret }}
      key: {{ $key }}
{{- end }}
{{- end }}
{{- else }}
- name: ETCD_PD_ROLES
  value: "false"
{{- end }}
{{- if include "etcd-pd.etcd.own" . }}
- name: ETCD_PD_NAMESPACE
  value: {{ .Release.Namespace }}
- name: ETCD_PD_FORMED_CONFIG_MAP
  value: {{ include "etcd-pd.fullname" . }}-etcd-formed-{{ .Values.etcd.generation }}
{{- end }}
{{- end -}}
