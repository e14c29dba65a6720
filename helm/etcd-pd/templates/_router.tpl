{{- define "etcd-pd.router.selector" -}}
{{ include "etcd-pd.selectorLabels" . }}
app.kubernetes.io/component: router
{{- end -}}

{{/* A selector of engine pods as the router's words. Call with (dict "root" $ "role" NAME). */}}
{{- define "etcd-pd.router.words" -}}
{{- $words := list -}}
{{- range $key, $value := include "etcd-pd.instance.selector" . | fromYaml -}}
{{- $words = append $words (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- $all := dict "root" .root -}}
{{- include "etcd-pd.fleets" $all -}}
{{- $several := false -}}
{{- range $all.fleets }}{{ if and (eq .role $.role) (eq .kind "LeaderWorkerSet") }}{{ $several = true }}{{ end }}{{ end -}}
{{- /* of the pods of an instance its leader alone takes requests */}}
{{- if $several }}{{ $words = append $words "leaderworkerset.sigs.k8s.io/worker-index=0" }}{{ end -}}
{{ toYaml $words }}
{{- end -}}

{{/* The variable with the key that the router asks for, where it asks for one. */}}
{{- define "etcd-pd.router.key" -}}
{{- with .Values.router.apiKey -}}
{{- if .secretName -}}
- name: ROUTER_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .secretName }}
      key: {{ .secretKey }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.router.pod" -}}
{{- $router := .Values.router -}}
{{- include "etcd-pd.podDefaults" . }}
serviceAccountName: {{ include "etcd-pd.account" (dict "root" . "suffix" "router") }}
automountServiceAccountToken: true
terminationGracePeriodSeconds: {{ $router.terminationGracePeriodSeconds }}
{{- range $key := list "nodeSelector" "tolerations" }}
{{- with get $router $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- /* rather not on one node */}}
{{- $selector := dict "matchLabels" (include "etcd-pd.router.selector" . | fromYaml) }}
{{- $apart := dict "weight" 100 "podAffinityTerm" (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector) }}
{{- $affinity := dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list $apart)) }}
affinity:
  {{- mergeOverwrite $affinity $router.affinity | toYaml | nindent 2 }}
securityContext:
  {{- include "etcd-pd.podSecurity" (dict "root" . "user" 65532 "values" $router.podSecurityContext) | nindent 2 }}
containers:
  - name: router
    image: {{ include "etcd-pd.image" (dict "root" . "image" $router.image) }}
    imagePullPolicy: {{ $router.image.pullPolicy }}
    {{- if $router.apiKey.secretName }}
    # It takes the key as an argument alone, and arguments of a process are no secret on its node: so not as a real one.
    command:
      - python3
      - -c
      - import os, sys; from sglang_router.cli import main; sys.argv.append("--api-key=" + os.environ["ROUTER_API_KEY"]); main()
      - launch
    {{- else }}
    command: [sglang-router, launch]
    {{- end }}
    args:
      # IPv4 and IPv6; where the kernel has no IPv6 at all, args: [--host=0.0.0.0, --prometheus-host=0.0.0.0]
      - --host=[::]
      - --port={{ $router.port }}
      - --prometheus-host=[::]
      - --prometheus-port=29000
      - --pd-disaggregation
      - --policy={{ $router.policy }}
      - --health-check-interval-secs={{ $router.healthCheckIntervalSeconds }}
      # By default it leaves both legs' instances alone for a minute after ten requests that failed, whichever leg it was.
      - --cb-timeout-duration-secs={{ $router.healthCheckIntervalSeconds }}
      {{- if eq $router.discovery "router" }}
      - --service-discovery
      - --service-discovery-namespace={{ .Release.Namespace }}
      - --service-discovery-port={{ .Values.enginePort }}
      {{- range $role := list "prefill" "decode" }}
      - --{{ $role }}-selector
      {{- include "etcd-pd.router.words" (dict "root" $ "role" $role) | nindent 6 }}
      {{- end }}
      {{- end }}
      {{- with $router.args }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    env:
      - name: HOME
        value: /tmp
      - name: HF_HUB_OFFLINE
        value: "1"
      # Without a line for each request, its own probes among them; requests that fail leave one.
      - name: RUST_LOG
        value: smg=info,smg::request=warn,smg::response=warn
      {{- with include "etcd-pd.router.key" . }}{{ nindent 6 . }}{{ end }}
      {{- with $router.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    ports:
      - name: http
        containerPort: {{ $router.port }}
      - name: metrics
        containerPort: 29000
    startupProbe:
      httpGet:
        path: /liveness
        port: http
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: 60
    livenessProbe:
      httpGet:
        path: /liveness
        port: http
      periodSeconds: 10
      timeoutSeconds: 5
    readinessProbe:
      httpGet:
        path: /readiness
        port: http
      periodSeconds: 2
      timeoutSeconds: 5
    {{- with $router.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "etcd-pd.noPrivileges" $router.securityContext | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
  {{- if eq $router.discovery "sidecar" }}
  - name: enlist
    image: {{ include "etcd-pd.image" (dict "root" . "image" .Values.agent.image) }}
    imagePullPolicy: {{ .Values.agent.image.pullPolicy }}
    command: [etcd-pd, enlist-engines]
    env:
      - name: ETCD_PD_NAMESPACE
        value: {{ .Release.Namespace }}
      - name: ETCD_PD_SELECTOR
        value: app.kubernetes.io/name={{ include "etcd-pd.name" . }},app.kubernetes.io/instance={{ .Release.Name }},etcd-pd/role
      - name: ETCD_PD_PORT
        value: {{ .Values.enginePort | quote }}
      - name: ETCD_PD_ROUTER
        value: http://localhost:{{ $router.port }}
      {{- with include "etcd-pd.router.key" . }}{{ nindent 6 . }}{{ end }}
      {{- include "etcd-pd.logEnv" . | nindent 6 }}
    {{- include "etcd-pd.job.limits" . | nindent 4 }}
  {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
{{- end -}}

{{/* The ways in from outside of the cluster. */}}
{{- define "etcd-pd.router.ways" -}}
{{- $router := .Values.router -}}
{{- $metadata := dict "root" . "component" "router" "suffix" "router" -}}
{{- $name := printf "%s-router" (include "etcd-pd.fullname" .) -}}
{{- with $router.ingress }}
{{- if .enabled }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
  {{- with include "etcd-pd.annotations" (dict "values" .annotations) }}{{ nindent 2 . }}{{ end }}
spec:
  {{- with .className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .tlsSecret }}
  tls:
    - secretName: {{ . }}
      {{- with $router.ingress.hosts }}
      hosts:
        {{- toYaml . | nindent 8 }}
      {{- end }}
  {{- end }}
  rules:
    {{- range .hosts | default (list "") }}
    - http:
        paths:
          - path: /
            pathType: Prefix
            backend: {service: {name: {{ $name }}, port: {name: http}}}
      {{- with . }}
      host: {{ . | quote }}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}
{{- with $router.httpRoute }}
{{- if .enabled }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
  {{- with include "etcd-pd.annotations" (dict "values" .annotations) }}{{ nindent 2 . }}{{ end }}
spec:
  parentRefs:
    {{- toYaml .parentRefs | nindent 4 }}
  {{- with .hostnames }}
  hostnames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    - backendRefs:
        - name: {{ $name }}
          port: {{ $router.port }}
      {{- with .timeouts }}
      timeouts:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}
