{{/* Sets `fleets` in its argument: a dict (root, role, group, name, full, kind, apiVersion, values) for each fleet, which is what templates
     of _instance.tpl take: name is that of its component, the next three are of its Deployment or LeaderWorkerSet. A role with groups has
     a fleet for each of them, whose values lie over the role's. Call with (dict "root" $). */}}
{{- define "etcd-pd.fleets" -}}
{{- $root := .root -}}
{{- $fleets := list -}}
{{- range $role := list "prefill" "decode" -}}
{{- $base := get $root.Values $role -}}
{{- range $group, $own := $base.groups | default (dict "" dict) -}}
{{- $name := ternary $role (printf "%s-%s" $role $group) (empty $group) -}}
{{- $values := mergeOverwrite (omit $base "groups" | deepCopy) (deepCopy $own) -}}
{{- $full := printf "%s-%s" (include "etcd-pd.fullname" $root) $name -}}
{{- $fleet := dict "root" $root "role" $role "group" $group "name" $name "full" $full "values" $values -}}
{{- $workload := ternary (dict "kind" "Deployment" "apiVersion" "apps/v1") (dict "kind" "LeaderWorkerSet" "apiVersion" "leaderworkerset.x-k8s.io/v1") (eq (int $values.podsPerInstance) 1) -}}
{{- $fleets = append $fleets (merge $fleet $workload) -}}
{{- end -}}
{{- end -}}
{{- $_ := set . "fleets" $fleets -}}
{{- end -}}

{{/* How few instances of a fleet there may be. */}}
{{- define "etcd-pd.fleet.least" -}}
{{ ternary .values.replicas .values.autoscaling.minReplicas (eq .values.autoscaling.kind "none") | int }}
{{- end -}}

{{/* replicas of a fleet: where somebody else scales it, what there is now, and else Kubernetes' own default. Without a cluster to
     ask, as under Argo CD, it is left out always. */}}
{{- define "etcd-pd.fleet.replicas" -}}
{{- if eq .values.autoscaling.kind "none" -}}
replicas: {{ .values.replicas }}
{{- else -}}
{{- with lookup .apiVersion .kind .root.Release.Namespace .full -}}
replicas: {{ .spec.replicas }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The rooms that a fleet's pods have: those that prefill registered, those that decode waits for or uses. */}}
{{- define "etcd-pd.fleet.metric" -}}
{{ ternary "etcd_pd_rank_rooms" "etcd_pd_waits" (eq .role "prefill") }}
{{- end -}}

{{/* Who scales a fleet by the rooms of its pods. */}}
{{- define "etcd-pd.fleet.autoscaler" -}}
{{- $metadata := dict "root" .root "component" .role "suffix" .name -}}
{{- with .values.autoscaling -}}
{{- if eq .kind "hpa" }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: {{ $.apiVersion }}, kind: {{ $.kind }}, name: {{ $.full }}}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Pods
      pods:
        metric: {name: {{ .metric | default (include "etcd-pd.fleet.metric" $) }}}
        target: {type: AverageValue, averageValue: {{ .target | quote }}}
  {{- with .behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else if eq .kind "keda" }}
{{- /* of a LeaderWorkerSet: leaders, as a HorizontalPodAutoscaler sees it; the other pods of an instance have the same rooms */}}
{{- $pods := printf "%s-%s" $.full (ternary ".+" "[0-9]+" (eq $.kind "Deployment")) }}
{{- $rooms := printf "sum(%s{namespace=\"%s\",pod=~\"%s\"})" (.metric | default (include "etcd-pd.fleet.metric" $)) $.root.Release.Namespace $pods }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: {{ $.apiVersion }}, kind: {{ $.kind }}, name: {{ $.full }}}
  minReplicaCount: {{ .minReplicas }}
  maxReplicaCount: {{ .maxReplicas }}
  {{- with .behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ .prometheus | quote }}
        query: {{ .query | default $rooms | quote }}
        threshold: {{ .target | quote }}
{{- end }}
{{- end -}}
{{- end -}}
