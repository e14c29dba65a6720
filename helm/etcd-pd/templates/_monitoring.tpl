{{/* What Prometheus scrapes. */}}

{{/* Whether a fleet's engines are scraped: SGLang has metrics only where the chart makes its command. Arguments as in _instance.tpl. */}}
{{- define "etcd-pd.engineMetrics" -}}
{{- $scraped := or .root.Values.podMonitor.enabled .root.Values.serviceMonitor.enabled -}}
{{- if and $scraped (or (eq .values.engine "reference") (not .values.command)) }}true{{ end -}}
{{- end -}}

{{/* The ports of a component. Call with (dict "component" NAME "interval" TIME "http" BOOLEAN). */}}
{{- define "etcd-pd.endpoints" -}}
- port: metrics
  interval: {{ .interval }}
{{- if .http }}
# The engines' own.
- port: http
  interval: {{ .interval }}
{{- end }}
{{- end -}}

{{/* Scrapes a component's pods. Call with (dict "root" $ "component" NAME). */}}
{{- define "etcd-pd.podMonitor" -}}
{{- $monitor := .root.Values.podMonitor -}}
{{- $http := false -}}
{{- if eq .component "agent" -}}
{{- $all := dict "root" .root -}}
{{- include "etcd-pd.fleets" $all -}}
{{- range $all.fleets -}}
{{- if include "etcd-pd.engineMetrics" . }}{{ $http = true }}{{ end -}}
{{- end -}}
{{- end -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" .component "labels" $monitor.labels) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "etcd-pd.selectorLabels" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  podMetricsEndpoints:
    {{- include "etcd-pd.endpoints" (dict "interval" $monitor.interval "http" $http) | nindent 4 }}
{{- end -}}

{{/* Scrapes the pods behind a Service of its own. Call with (dict "root" $ "component" NAME "selector" YAML "http" BOOLEAN). */}}
{{- define "etcd-pd.serviceMonitor" -}}
{{- $monitor := .root.Values.serviceMonitor -}}
{{- $suffix := printf "%s-metrics" .component -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" $suffix "labels" (dict "etcd-pd/metrics" .component)) | nindent 2 }}
spec:
  clusterIP: None
  # Who is not ready is looked at all the more.
  publishNotReadyAddresses: true
  selector:
    {{- .selector | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
    {{- end }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" .component "labels" $monitor.labels) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "etcd-pd.selectorLabels" .root | nindent 6 }}
      etcd-pd/metrics: {{ .component }}
  endpoints:
    {{- include "etcd-pd.endpoints" (dict "interval" $monitor.interval "http" (hasKey .ports "http")) | nindent 4 }}
{{- end -}}
