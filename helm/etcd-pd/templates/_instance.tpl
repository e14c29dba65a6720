{{/* A fleet of engine pods: prefill and decode differ in their name, their certificate and their values alone.
     Call with one of _fleets.tpl. */}}

{{- define "etcd-pd.instance.selector" -}}
{{ include "etcd-pd.selectorLabels" .root }}
etcd-pd/role: {{ .role }}
{{- with .group }}
etcd-pd/group: {{ . }}
{{- end }}
{{- end -}}

{{/* The model as the engine's --model-path. */}}
{{- define "etcd-pd.instance.modelPath" -}}
{{- with .values.model -}}
{{- if .huggingFace -}}
{{ .huggingFace.repository }}
{{- else if .claim -}}
{{ printf "/model/%s" (.claim.path | default "") | trimSuffix "/" }}
{{- else if .image -}}
{{ printf "/model/%s" (.image.path | default "") | trimSuffix "/" }}
{{- else if .hostPath -}}
/model
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.instance.command" -}}
{{- $model := include "etcd-pd.instance.modelPath" . -}}
{{- if .values.command }}
command:
  {{- toYaml .values.command | nindent 2 }}
{{- else if eq .values.engine "sglang" }}
command:
  - python3
  - -m
  - sglang.launch_server
  - --model-path={{ $model }}
  - --host=$(POD_IP)
  - --port={{ .root.Values.enginePort }}
  - --disaggregation-mode={{ .role }}
  - --disaggregation-bootstrap-port={{ .root.Values.bootstrapPort }}
  - --dp-size={{ .values.dpSize }}
  {{- if eq .kind "LeaderWorkerSet" }}
  - --nnodes={{ .values.podsPerInstance }}
  - --node-rank=$(LWS_WORKER_INDEX)
  - --dist-init-addr=$(LWS_LEADER_ADDRESS):20000
  {{- end }}
  {{- if include "etcd-pd.engineMetrics" . }}
  - --enable-metrics
  {{- end }}
  {{- with .values.policy }}
  - --load-balance-method={{ . }}
  {{- end }}
  {{- with .values.model.huggingFace }}
  {{- with .revision }}
  - --revision={{ . }}
  {{- end }}
  {{- end }}
{{- else }}
command: [etcd-pd, {{ .role }}]
{{- end }}
{{- with .values.args }}
args:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.instance.env" -}}
{{- $values := .values -}}
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: ETCD_PD_INSTANCE
{{- if eq .kind "LeaderWorkerSet" }}
  value: $(LWS_LEADER_ADDRESS)
{{- else }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
- name: ETCD_PD_SOCKET
  value: /run/etcd-pd/agent.sock
# A user id without a name: torch asks for one.
- name: USER
  value: etcd-pd
- name: HOME
  value: /cache
- name: XDG_CACHE_HOME
  value: /cache
- name: HF_HOME
  value: /cache/huggingface
- name: TRITON_CACHE_DIR
  value: /cache/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /cache/inductor
{{- if eq $values.engine "sglang" }}
- name: PYTHONPATH
  value: /etcd-pd/python
- name: ETCD_PD_ENABLE
  value: "1"
{{- else }}
- name: ETCD_PD_HOST
  value: $(POD_IP)
- name: ETCD_PD_PORT
  value: {{ .root.Values.enginePort | quote }}
{{- if eq .role "prefill" }}
- name: ETCD_PD_BOOTSTRAP_PORT
  value: {{ .root.Values.bootstrapPort | quote }}
- name: ETCD_PD_BOOTSTRAP_TIMEOUT_SECONDS
  value: {{ .root.Values.agent.settings.bootstrapTimeoutSeconds | quote }}
{{- end }}
- name: ETCD_PD_DP_SIZE
  value: {{ $values.dpSize | quote }}
{{- with $values.policy }}
- name: ETCD_PD_POLICY
  value: {{ . }}
{{- end }}
{{- with include "etcd-pd.instance.modelPath" . }}
- name: ETCD_PD_MODEL_PATH
  value: {{ . }}
{{- end }}
{{- if gt (int $values.gpu.count) 0 }}
- name: ETCD_PD_DEVICE
  value: cuda
{{- end }}
- name: ETCD_PD_STARTUP_TIMEOUT_SECONDS
  value: {{ $values.startupSeconds | quote }}
{{- include "etcd-pd.logEnv" .root }}
{{- end }}
{{- with $values.model.huggingFace }}
{{- if .secretName }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .secretName }}
      key: {{ .secretKey | default "token" }}
{{- end }}
{{- end }}
{{- with $values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.instance.resources" -}}
{{- $devices := deepCopy .values.rdma.resources -}}
{{- if gt (int .values.gpu.count) 0 -}}
{{- $_ := set $devices .values.gpu.resourceName .values.gpu.count -}}
{{- end -}}
{{- $resources := deepCopy .values.resources -}}
{{- if $devices -}}
{{- $_ := set $resources "limits" (merge $devices (get $resources "limits" | default dict)) -}}
{{- end -}}
{{- range .values.resourceClaims -}}
{{- $_ := set $resources "claims" (append (get $resources "claims" | default list) (pick . "name")) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "etcd-pd.instance.affinity" -}}
{{- $affinity := deepCopy .values.affinity -}}
{{- if .values.topologyKey -}}
{{- $labels := dict "matchLabels" (include "etcd-pd.selectorLabels" .root | fromYaml | merge (dict "app.kubernetes.io/component" "agent")) -}}
{{- $term := dict "topologyKey" .values.topologyKey "labelSelector" $labels -}}
{{- $_ := set $affinity "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- end -}}
{{- if .values.hostNetwork -}}
{{- $labels := dict "matchLabels" (include "etcd-pd.selectorLabels" .root | fromYaml | merge (dict "app.kubernetes.io/component" "agent")) -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $labels -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- end -}}
{{- if $affinity -}}
affinity:
  {{- toYaml $affinity | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "etcd-pd.instance.engine" -}}
{{- /* Whether to restart it; whether to send it requests is /health, which asks for the agent too. SGLang has one path for both. */ -}}
{{- $alive := ternary "/health" "/liveness" (eq .values.engine "sglang") -}}
name: engine
image: {{ include "etcd-pd.image" (dict "root" .root "image" .values.image) }}
imagePullPolicy: {{ .values.image.pullPolicy }}
{{- include "etcd-pd.instance.command" . }}
env:
  {{- include "etcd-pd.instance.env" . | nindent 2 }}
ports:
  - name: http
    containerPort: {{ .root.Values.enginePort }}
{{- $started := dict "path" $alive "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" (div (add .values.startupSeconds 4) 5) }}
{{- $living := dict "path" $alive "periodSeconds" 10 "timeoutSeconds" 10 "failureThreshold" 6 }}
{{- $ready := dict "path" "/health" "periodSeconds" 5 "timeoutSeconds" 5 }}
{{- range $name, $own := dict "startup" $started "liveness" $living "readiness" $ready }}
{{ $name }}Probe:
  httpGet:
    path: {{ $own.path }}
    port: http
  {{- mergeOverwrite (omit $own "path") (get $.values.probes $name) | toYaml | nindent 2 }}
{{- end }}
lifecycle:
  preStop:
    exec:
      command:
        - python3
        - -m
        - etcd_pd.client.drain
        - --delay-seconds={{ .values.drain.delaySeconds }}
        - --timeout-seconds={{ .values.drain.timeoutSeconds }}
  {{- with .values.postStart }}
  postStart:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with include "etcd-pd.instance.resources" . | fromYaml }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $may := dict "readOnlyRootFilesystem" .values.readOnlyRootFilesystem }}
{{- if .values.rdma.ipcLock }}{{ $_ := set $may "capabilities" (dict "add" (list "IPC_LOCK")) }}{{ end }}
securityContext:
  {{- include "etcd-pd.noPrivileges" (mergeOverwrite $may .values.securityContext) | nindent 2 }}
volumeMounts:
  - name: socket
    mountPath: /run/etcd-pd
  - name: shm
    mountPath: /dev/shm
  - name: tmp
    mountPath: /tmp
  - name: cache
    mountPath: /cache
  {{- if eq .values.engine "sglang" }}
  - name: client
    mountPath: /etcd-pd/python
    readOnly: true
  {{- end }}
  {{- if or .values.model.claim .values.model.hostPath .values.model.image }}
  - name: model
    mountPath: /model
    readOnly: true
  {{- end }}
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "etcd-pd.instance.volumes" -}}
- name: socket
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .values.shmSize }}
- name: tmp
  emptyDir: {}
- name: cache
  emptyDir: {}
{{- if eq .values.engine "sglang" }}
- name: client
  emptyDir: {}
{{- end }}
{{- if .values.model.claim }}
- name: model
  persistentVolumeClaim:
    claimName: {{ .values.model.claim.name }}
    readOnly: true
{{- else if .values.model.hostPath }}
- name: model
  hostPath:
    path: {{ .values.model.hostPath }}
    type: Directory
{{- else if .values.model.image }}
- name: model
  image:
    reference: {{ .values.model.image.reference }}
    pullPolicy: {{ .values.model.image.pullPolicy | default "IfNotPresent" }}
{{- end }}
{{- with include "etcd-pd.tls.volume" (dict "root" .root "identity" .role) }}{{ nindent 0 . }}{{ end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "etcd-pd.instance.pod" -}}
{{- include "etcd-pd.podDefaults" .root }}
serviceAccountName: {{ include "etcd-pd.account" (dict "root" .root) }}
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
{{- if .values.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- range $key := list "runtimeClassName" "priorityClassName" "schedulerName" }}
{{- with get $.values $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "resourceClaims" }}
{{- with get $.values $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
  - {{ merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (include "etcd-pd.instance.selector" $ | fromYaml))) | toYaml | nindent 4 | trim }}
{{- end }}
{{- end }}
{{- with include "etcd-pd.instance.affinity" . }}
{{ . }}
{{- end }}
{{- $security := dict "root" .root "user" .values.runAsUser "group" .values.runAsGroup "fsGroup" .values.fsGroup "values" .values.podSecurityContext }}
securityContext:
  {{- include "etcd-pd.podSecurity" $security | nindent 2 }}
initContainers:
  {{- if eq .values.engine "sglang" }}
  # SGLang's image stays as it is: the client, its plug-in and the metadata by which SGLang finds it come from ours.
  - name: client
    image: {{ include "etcd-pd.image" (dict "root" .root "image" .root.Values.agent.image) }}
    imagePullPolicy: {{ .root.Values.agent.image.pullPolicy }}
    command: [python3, -m, etcd_pd.kubernetes.client_copy, /etcd-pd/python]
    {{- include "etcd-pd.job.limits" .root | nindent 4 }}
    volumeMounts:
      - name: client
        mountPath: /etcd-pd/python
  {{- end }}
  {{- $agent := dict "root" .root "identity" .role "name" "agent" "socket" "/run/etcd-pd/agent.sock" "metrics" .root.Values.agent.metricsPort "resources" .root.Values.agent.resources }}
  - {{ include "etcd-pd.agent" $agent | nindent 4 | trim }}
  {{- with .values.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
containers:
  - {{ include "etcd-pd.instance.engine" . | nindent 4 | trim }}
  {{- with .values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- include "etcd-pd.instance.volumes" . | nindent 2 }}
{{- end -}}

{{/* The template of its pods. */}}
{{- define "etcd-pd.instance.template" -}}
{{- $labels := mergeOverwrite dict .values.podLabels (dict "etcd-pd/role" .role) -}}
{{- with .group }}{{ $_ := set $labels "etcd-pd/group" . }}{{ end -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" "agent" -}}
{{- if eq .role "prefill" }}{{ $_ := set $annotations "sglang.ai/bootstrap-port" (toString .root.Values.bootstrapPort) }}{{ end -}}
metadata:
  labels:
    {{- include "etcd-pd.podLabels" (dict "root" .root "component" "agent" "labels" $labels) | nindent 4 }}
  {{- include "etcd-pd.annotations" (dict "own" $annotations "values" .values.podAnnotations) | nindent 2 }}
spec:
  {{- include "etcd-pd.instance.pod" . | nindent 2 }}
{{- end -}}

{{- define "etcd-pd.instance" -}}
{{- $metadata := dict "root" .root "component" .role "suffix" .name -}}
apiVersion: {{ .apiVersion }}
kind: {{ .kind }}
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
spec:
  {{- with include "etcd-pd.fleet.replicas" . }}{{ nindent 2 . }}{{ end }}
  # With maxSurge 0, since a new pod may not have a GPU before an old one gives it up.
  {{- if eq .kind "LeaderWorkerSet" }}
  rolloutStrategy:
    type: RollingUpdate
    rollingUpdateConfiguration:
      {{- pick .values.updateStrategy "maxSurge" "maxUnavailable" | toYaml | nindent 6 }}
  leaderWorkerTemplate:
    size: {{ .values.podsPerInstance }}
    # An instance of which one pod has ended is of no use: all of them start again, together.
    restartPolicy: RecreateGroupOnPodRestart
    # Of the leader too: SGLang answers /health on every node.
    workerTemplate:
      {{- include "etcd-pd.instance.template" . | nindent 6 }}
  {{- else }}
  strategy:
    type: {{ .values.updateStrategy.type }}
    {{- if eq .values.updateStrategy.type "RollingUpdate" }}
    rollingUpdate:
      {{- pick .values.updateStrategy "maxSurge" "maxUnavailable" | toYaml | nindent 6 }}
    {{- end }}
  progressDeadlineSeconds: {{ add .values.startupSeconds .values.terminationGracePeriodSeconds 600 }}
  selector:
    matchLabels:
      {{- include "etcd-pd.instance.selector" . | nindent 6 }}
  template:
    {{- include "etcd-pd.instance.template" . | nindent 4 }}
  {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
spec:
  maxUnavailable: {{ .values.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "etcd-pd.instance.selector" . | nindent 6 }}
{{- with include "etcd-pd.fleet.autoscaler" . }}
---
{{ . | trim }}
{{- end }}
{{- end -}}
