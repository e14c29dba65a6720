{{/* The members' pods. */}}

{{- define "etcd-pd.etcd.selector" -}}
{{ include "etcd-pd.selectorLabels" . }}
app.kubernetes.io/component: etcd
{{- end -}}

{{/* etcd's configuration, but for what `etcd-pd etcd-member` adds in each pod: its name, its URLs, new or existing. */}}
{{- define "etcd-pd.etcd.ownConfig" -}}
{{- $scheme := include "etcd-pd.etcd.scheme" . -}}
data-dir: /data/etcd-{{ .Values.etcd.generation }}
listen-client-urls: {{ $scheme }}://0.0.0.0:2379
listen-peer-urls: {{ $scheme }}://0.0.0.0:2380
listen-metrics-urls: http://0.0.0.0:2381
# It makes the cluster's id, by which agents tell an etcd that has another history.
initial-cluster-token: {{ .Release.Namespace }}/{{ include "etcd-pd.fullname" . }}/{{ .Values.etcd.generation }}
quota-backend-bytes: {{ include "etcd-pd.bytes" .Values.etcd.quota }}
auto-compaction-mode: periodic
auto-compaction-retention: {{ .Values.etcd.compactionRetention }}
logger: zap
log-level: {{ .Values.etcd.logLevel }}
{{- if .Values.tls.enabled }}
client-transport-security:
  cert-file: /etc/etcd-pd/tls/etcd/tls.crt
  key-file: /etc/etcd-pd/tls/etcd/tls.key
  trusted-ca-file: /etc/etcd-pd/tls/etcd/ca.crt
  client-cert-auth: true
peer-transport-security:
  cert-file: /etc/etcd-pd/tls/etcd/tls.crt
  key-file: /etc/etcd-pd/tls/etcd/tls.key
  trusted-ca-file: /etc/etcd-pd/tls/etcd/ca.crt
  client-cert-auth: true
{{- end }}
{{- end -}}

{{- define "etcd-pd.etcd.config" -}}
{{- include "etcd-pd.etcd.ownConfig" . }}
{{- with .Values.etcd.extraConfig }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Decides whether this member is new, starts again, or joins again after its volume was lost. */}}
{{- define "etcd-pd.etcd.member" -}}
name: member
image: {{ include "etcd-pd.image" (dict "root" . "image" .Values.agent.image) }}
imagePullPolicy: {{ .Values.agent.image.pullPolicy }}
command: [etcd-pd, etcd-member]
env:
  - name: ETCD_PD_MEMBER
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: ETCD_PD_INITIAL_CLUSTER
    value: {{ include "etcd-pd.etcd.initialCluster" . }}
  - name: ETCD_PD_DATA_DIR
    value: /data/etcd-{{ .Values.etcd.generation }}
  - name: ETCD_PD_CONFIG_BASE
    value: /etc/etcd-pd/config/etcd.yaml
  - name: ETCD_PD_CONFIG_FILE
    value: /run/etcd-pd/etcd.yaml
  - name: ETCD_PD_FORMED_FILE
    value: /etc/etcd-pd/formed/cluster-id
  - name: ETCD_PD_ETCD_VERSION
    value: {{ include "etcd-pd.etcd.version" . | quote }}
  {{- include "etcd-pd.etcd.env" (dict "root" . "identity" "root") | nindent 2 }}
{{- include "etcd-pd.job.limits" . | nindent 0 }}
volumeMounts:
  - name: data
    mountPath: /data
  - name: config
    mountPath: /etc/etcd-pd/config
    readOnly: true
  - name: formed
    mountPath: /etc/etcd-pd/formed
    readOnly: true
  - name: run
    mountPath: /run/etcd-pd
  {{- with include "etcd-pd.tls.mount" (dict "root" . "identity" "root") }}{{ nindent 2 . }}{{ end }}
{{- end -}}

{{- define "etcd-pd.etcd.container" -}}
name: etcd
image: {{ include "etcd-pd.image" (dict "root" . "image" .Values.etcd.image) }}
imagePullPolicy: {{ .Values.etcd.image.pullPolicy }}
command: [/usr/local/bin/etcd, --config-file=/run/etcd-pd/etcd.yaml]
ports:
  - name: client
    containerPort: 2379
  - name: peer
    containerPort: 2380
  - name: metrics
    containerPort: 2381
startupProbe:
  httpGet:
    path: /livez
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 5
{{- with .Values.etcd.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "etcd-pd.noPrivileges" .Values.etcd.securityContext | nindent 2 }}
volumeMounts:
  - name: data
    mountPath: /data
  - name: run
    mountPath: /run/etcd-pd
    readOnly: true
  {{- with include "etcd-pd.tls.mount" (dict "root" . "identity" "etcd") }}{{ nindent 2 . }}{{ end }}
{{- end -}}

{{- define "etcd-pd.etcd.pod" -}}
{{- include "etcd-pd.podDefaults" . }}
serviceAccountName: {{ include "etcd-pd.account" (dict "root" .) }}
automountServiceAccountToken: false
{{- with .Values.etcd.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" }}
{{- with get $.Values.etcd $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: {{ .Values.etcd.topologyKey }}
        labelSelector:
          matchLabels:
            {{- include "etcd-pd.etcd.selector" . | nindent 12 }}
securityContext:
  {{- include "etcd-pd.podSecurity" (dict "root" . "user" .Values.etcd.runAsUser "values" .Values.etcd.podSecurityContext) | nindent 2 }}
initContainers:
  - {{ include "etcd-pd.etcd.member" . | nindent 4 | trim }}
containers:
  - {{ include "etcd-pd.etcd.container" . | nindent 4 | trim }}
volumes:
  - name: run
    emptyDir: {}
  - name: config
    configMap:
      name: {{ include "etcd-pd.fullname" . }}-etcd
  # The init Job writes it once the members have found each other: from then on an empty volume is a lost one.
  - name: formed
    configMap:
      name: {{ include "etcd-pd.fullname" . }}-etcd-formed-{{ .Values.etcd.generation }}
      optional: true
  {{- with include "etcd-pd.tls.volume" (dict "root" . "identity" "etcd") }}{{ nindent 2 . }}{{ end }}
  {{- with include "etcd-pd.tls.volume" (dict "root" . "identity" "root") }}{{ nindent 2 . }}{{ end }}
{{- end -}}
