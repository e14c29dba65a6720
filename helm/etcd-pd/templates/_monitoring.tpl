{{/* Scrapes the port `metrics` of a component's pods. Call with (dict "root" $ "component" NAME). */}}
{{- define "etcd-pd.podMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" .component "labels" .root.Values.podMonitor.labels) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "etcd-pd.selectorLabels" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  podMetricsEndpoints:
    - port: metrics
      interval: {{ .root.Values.podMonitor.interval }}
    {{- if and (eq .component "agent") (has "reference" (list .root.Values.prefill.engine .root.Values.decode.engine)) }}
    # The reference engine's own metrics.
    - port: http
      interval: {{ .root.Values.podMonitor.interval }}
    {{- end }}
{{- end -}}
