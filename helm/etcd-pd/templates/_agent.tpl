{{/* The agent beside engines: a native sidecar, which starts before them and ends after them.
     Call with (dict "root" $ "identity" prefill|decode "name" CONTAINER "socket" PATH "metrics" PORT "resources" VALUES);
     port 0: none is open. */}}
{{- define "etcd-pd.agent" -}}
{{- $agent := .root.Values.agent -}}
name: {{ .name }}
image: {{ include "etcd-pd.image" (dict "root" .root "image" $agent.image) }}
imagePullPolicy: {{ $agent.image.pullPolicy }}
restartPolicy: Always
command: [etcd-pd, agent]
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: ETCD_PD_AGENT_ID
    value: $(POD_NAME)-{{ .name }}
  - name: ETCD_PD_SOCKET
    value: {{ .socket }}
  {{- include "etcd-pd.etcd.env" . | nindent 2 }}
  {{- range $name, $value := omit $agent.settings "etcdRequestTimeoutSeconds" }}
  - name: ETCD_PD_{{ snakecase $name | upper }}
    value: {{ $value | toString | quote }}
  {{- end }}
  {{- if and $agent.prefillOnly (eq .identity "prefill") }}
  - name: ETCD_PD_PREFILL_ONLY
    value: "true"
  {{- end }}
  - name: ETCD_PD_METRICS_LISTEN
    value: {{ ternary (printf "*:%d" (int .metrics)) "127.0.0.1:0" (gt (int .metrics) 0) | quote }}
{{- if .metrics }}
ports:
  - name: metrics
    containerPort: {{ .metrics }}
{{- end }}
# None of these asks etcd: an etcd that is down makes no pod restart and no GPU idle.
startupProbe:
  exec:
    command: [python3, -m, etcd_pd.client.health, started]
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  exec:
    command: [python3, -m, etcd_pd.client.health, alive]
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  exec:
    command: [python3, -m, etcd_pd.client.health, ready]
  periodSeconds: 5
  timeoutSeconds: 5
resources:
  {{- toYaml .resources | nindent 2 }}
securityContext:
  {{- include "etcd-pd.noPrivileges" $agent.securityContext | nindent 2 }}
volumeMounts:
  - name: socket
    mountPath: /run/etcd-pd
  {{- with include "etcd-pd.tls.mount" . }}{{ nindent 2 . }}{{ end }}
{{- end -}}
