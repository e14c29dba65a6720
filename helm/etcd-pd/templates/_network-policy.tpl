{{/* Parts of the NetworkPolicies. docs/security.md has the table that they follow. */}}

{{/* Pods of the release. Call with (dict "root" $ "label" LABEL "in" LIST). */}}
{{- define "etcd-pd.policy.peers" -}}
- podSelector:
    matchLabels:
      {{- include "etcd-pd.selectorLabels" .root | nindent 6 }}
    matchExpressions:
      - key: {{ .label }}
        operator: In
        values: [{{ join ", " .in }}]
{{- if has (first .in) (list "agent" "prefill" "decode") }}
{{- include "etcd-pd.policy.cidrs" .root.Values.networkPolicy.nodeCidrs }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.policy.cidrs" -}}
{{- range . }}
- ipBlock:
    cidr: {{ . }}
{{- end }}
{{- end -}}

{{/* One rule; without ports: all of them; without peers: everybody. Call with (dict "side" from|to "ports" LIST "peers" YAML). */}}
{{- define "etcd-pd.policy.rule" -}}
{{- $rule := dict -}}
{{- $ports := list -}}
{{- range .ports }}{{ $ports = append $ports (dict "port" (int .)) }}{{ end -}}
{{- with $ports }}{{ $_ := set $rule "ports" . }}{{ end -}}
{{- with fromYamlArray .peers }}{{ $_ := set $rule $.side . }}{{ end -}}
{{ list $rule | toYaml }}
{{- end -}}

{{/* OpenShift's DNS pods listen on 5353: plug-ins look at a packet behind the Service. */}}
{{- define "etcd-pd.policy.dns" -}}
- ports:
    {{- range $port := list 53 5353 }}
    {{- range $protocol := list "UDP" "TCP" }}
    - port: {{ $port }}
      protocol: {{ $protocol }}
    {{- end }}
    {{- end }}
  {{- with .Values.networkPolicy.dnsTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "etcd-pd.policy.toEtcd" -}}
{{- $ports := list -}}
{{- $peers := "" -}}
{{- if include "etcd-pd.etcd.own" . -}}
{{- $ports = list 2379 -}}
{{- $peers = include "etcd-pd.policy.peers" (dict "root" . "label" "app.kubernetes.io/component" "in" (list "etcd")) -}}
{{- else -}}
{{- range .Values.etcd.external.endpoints }}{{ $ports = append $ports (regexFind "[0-9]+$" .) }}{{ end -}}
{{- end -}}
{{ include "etcd-pd.policy.rule" (dict "side" "to" "ports" (uniq $ports) "peers" $peers) }}
{{- end -}}

{{- define "etcd-pd.policy.toKubernetes" -}}
{{- with .Values.networkPolicy -}}
{{ include "etcd-pd.policy.rule" (dict "side" "to" "ports" .apiServerPorts "peers" (include "etcd-pd.policy.cidrs" .apiServerCidrs)) }}
{{- end -}}
{{- end -}}

{{/* What fleets open to each other: SGLang's transfers any port in either direction, the reference engine's decode
     any port of prefill. Call with (dict "root" $ "side" from|to "role" prefill|decode). */}}
{{- define "etcd-pd.policy.fleets" -}}
{{- $all := dict "root" .root -}}
{{- include "etcd-pd.fleets" $all -}}
{{- $engines := list -}}
{{- range $all.fleets }}{{ $engines = append $engines .values.engine }}{{ end -}}
{{- $peers := list -}}
{{- if has "sglang" $engines -}}
{{- $peers = list "prefill" "decode" -}}
{{- else if eq (printf "%s %s" .role .side) "prefill from" -}}
{{- $peers = list "decode" -}}
{{- else if eq (printf "%s %s" .role .side) "decode to" -}}
{{- $peers = list "prefill" -}}
{{- end -}}
{{- with $peers -}}
{{- $pods := include "etcd-pd.policy.peers" (dict "root" $.root "label" "etcd-pd/role" "in" .) -}}
{{ include "etcd-pd.policy.rule" (dict "side" $.side "ports" list "peers" $pods) }}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.policy.intoEngine" -}}
{{- $values := .root.Values -}}
{{- $policy := $values.networkPolicy -}}
{{- $monitoring := toYaml $policy.monitoringFrom -}}
{{- $callers := toYaml $policy.ingressFrom -}}
{{- if $values.router.enabled -}}
{{- $callers = include "etcd-pd.policy.peers" (dict "root" .root "label" "app.kubernetes.io/component" "in" (list "router")) -}}
{{- end -}}
{{ include "etcd-pd.policy.rule" (dict "side" "from" "ports" (list $values.enginePort) "peers" $callers) }}
{{ include "etcd-pd.policy.rule" (dict "side" "from" "ports" (list $values.agent.metricsPort) "peers" $monitoring) }}
{{- if include "etcd-pd.engineMetrics" . }}
{{ include "etcd-pd.policy.rule" (dict "side" "from" "ports" (list $values.enginePort) "peers" $monitoring) }}
{{- end }}
{{- with include "etcd-pd.policy.fleets" (dict "root" .root "side" "from" "role" .role) }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.policy.outOfEngine" -}}
{{ include "etcd-pd.policy.dns" .root }}
{{ include "etcd-pd.policy.toEtcd" .root }}
{{- with include "etcd-pd.policy.fleets" (dict "root" .root "side" "to" "role" .role) }}
{{ . }}
{{- end }}
{{- if .values.model.huggingFace }}
{{ include "etcd-pd.policy.rule" (dict "side" "to" "ports" (list 443) "peers" "") }}
{{- end }}
{{- with .root.Values.networkPolicy.engineEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A policy. Call with (dict "root" $ "component" NAME "selector" YAML "ingress" YAML "egress" YAML); without `ingress`
     nobody gets in. */}}
{{- define "etcd-pd.policy" -}}
{{- $limited := or .root.Values.networkPolicy.egress (eq .component "etcd") -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "etcd-pd.metadata" (dict "root" .root "component" .component "suffix" .component) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- .selector | nindent 6 }}
  policyTypes: [Ingress{{ if $limited }}, Egress{{ end }}]
  {{- with .ingress }}
  ingress:
    {{- . | nindent 4 }}
  {{- end }}
  {{- if $limited }}
  egress:
    {{- .egress | nindent 4 }}
  {{- end }}
{{- end -}}
