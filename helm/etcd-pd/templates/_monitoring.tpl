{{/* Call with (dict "root" $ "component" NAME "selector" YAML). */}}
{{- define "etcd-pd.podMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" .component) | nindent 2 }}
    {{- with .root.Values.podMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- .selector | nindent 6 }}
  podMetricsEndpoints:
    - port: metrics
      interval: {{ .root.Values.podMonitor.interval }}
{{- end -}}
