{{/* The pod of a job of ours. Call with (dict "root" $ "component" NAME "command" COMMAND "env" YAML "identity" NAME).
     Only these pods, and the router's, get a token for the Kubernetes API. */}}
{{- define "etcd-pd.job.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "etcd-pd.podLabels" (dict "root" $root "component" .component "labels" $root.Values.jobs.podLabels) | nindent 4 }}
  {{- with include "etcd-pd.annotations" (dict "values" $root.Values.jobs.podAnnotations) }}{{ nindent 2 . }}{{ end }}
spec:
  {{- include "etcd-pd.podDefaults" $root | nindent 2 }}
  serviceAccountName: {{ include "etcd-pd.account" (dict "root" $root "suffix" .account) }}
  automountServiceAccountToken: {{ ne .account "" }}
  restartPolicy: OnFailure
  {{- include "etcd-pd.job.place" $root | nindent 2 }}
  containers:
    - name: {{ .component }}
      image: {{ include "etcd-pd.image" (dict "root" $root "image" $root.Values.agent.image) }}
      imagePullPolicy: {{ $root.Values.agent.image.pullPolicy }}
      command: [etcd-pd, {{ .command }}]
      env:
        {{- .env | nindent 8 }}
      {{- include "etcd-pd.job.limits" $root | nindent 6 }}
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

{{/* What a container of ours may use and do that is neither an agent nor an engine. */}}
{{- define "etcd-pd.job.limits" -}}
{{- with .Values.jobs.resources -}}
resources:
  {{- toYaml . | nindent 2 }}
{{ end -}}
securityContext:
  {{- include "etcd-pd.noPrivileges" .Values.jobs.securityContext | nindent 2 }}
{{- end -}}

{{/* Where a pod that ends runs, and as whom. */}}
{{- define "etcd-pd.job.place" -}}
{{- range $key := list "nodeSelector" "tolerations" -}}
{{- with get $.Values.jobs $key -}}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- end -}}
securityContext:
  {{- include "etcd-pd.podSecurity" (dict "root" . "user" 65532 "values" .Values.jobs.podSecurityContext) | nindent 2 }}
{{- end -}}

{{/* An ordinary Job, a new one with every upgrade, so that none that failed is in the way; where nothing counts revisions
     (`helm template`, k8s/), with every change of its pod. As a hook it goes when it succeeded, and has less patience, since
     Helm waits for it. Call with (dict "root" $ "component" NAME "pod" YAML "hook" EVENTS), the last where it is one. */}}
{{- define "etcd-pd.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- $suffix := printf "%s-%s-%d" .component (sha256sum .pod | trunc 8) .root.Release.Revision }}
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" $suffix) | nindent 2 }}
  {{- with include "etcd-pd.hook" (dict "events" .hook "weight" 0 "values" .root.Values.jobs.annotations) }}{{ nindent 2 . }}{{ end }}
spec:
  backoffLimit: {{ ternary 100 3 (empty .hook) }}
  ttlSecondsAfterFinished: {{ .root.Values.jobs.ttlSecondsAfterFinished }}
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

{{/* Settings of `etcd-pd end-fleets`. Call with (dict "root" $ "deployments" LIST "seconds" NUMBER). */}}
{{- define "etcd-pd.uninstall.env" -}}
- name: ETCD_PD_NAMESPACE
  value: {{ .root.Release.Namespace }}
{{- with .deployments }}
- name: ETCD_PD_DEPLOYMENTS
  value: {{ join "," . }}
{{- end }}
{{- with .leaderWorkerSets }}
- name: ETCD_PD_LEADER_WORKER_SETS
  value: {{ join "," . }}
{{- end }}
- name: ETCD_PD_SELECTOR
  value: app.kubernetes.io/name={{ include "etcd-pd.name" .root }},app.kubernetes.io/instance={{ .root.Release.Name }},app.kubernetes.io/component=agent
- name: ETCD_PD_WAIT_SECONDS
  value: {{ .seconds | quote }}
{{- include "etcd-pd.logEnv" .root }}
{{- end -}}
