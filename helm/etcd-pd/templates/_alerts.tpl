{{/* Rules of the alerts, in groups: etcd's own metrics, those of the agents, and the renewal of certificates. Call with
     (dict "root" $ "pods" SELECTOR). */}}

{{- define "etcd-pd.alerts.etcd" -}}
- alert: EtcdPdNoLeader
  expr: {{ printf "min(etcd_server_has_leader{%s}) == 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: A member of etcd sees no leader; known rooms go on resolving, new ones wait.
    runbook: docs/runbook.md#etcdpdnoleader
# A count of nothing is no number, and fires nothing.
- alert: EtcdPdQuorumLost
  expr: {{ printf "(count(up{%s} == 1) or vector(0)) < %d" .pods (int (add1 (div .root.Values.etcd.replicas 2))) | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: Fewer members of etcd answer than a majority, or none; known rooms go on resolving, new ones wait.
    runbook: docs/runbook.md#etcdpdquorumlost
- alert: EtcdPdMemberDown
  expr: {{ printf "(count(up{%s} == 1) or vector(0)) < %d" .pods (int .root.Values.etcd.replicas) | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A member of etcd is down.
    runbook: docs/runbook.md#etcdpdmemberdown
- alert: EtcdPdDatabaseFills
  expr: {{ printf "max by (pod) (etcd_mvcc_db_total_size_in_use_in_bytes{%[1]s}) / max by (pod) (etcd_server_quota_backend_bytes{%[1]s}) > 0.7" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 70 % of etcd's quota is in use; raise the quota, or shorten compactionRetention.
    runbook: docs/runbook.md#etcdpddatabasefills
# The quota holds for the file, with the pages in it that are free.
- alert: EtcdPdDatabaseNearQuota
  expr: {{ printf "max by (pod) (etcd_mvcc_db_total_size_in_bytes{%[1]s}) / max by (pod) (etcd_server_quota_backend_bytes{%[1]s}) > 0.9" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The file of etcd's database is near the quota, where etcd refuses writes; defragment, or raise the quota.
    runbook: docs/runbook.md#etcdpddatabasenearquota
# With the NOSPACE alarm raised, etcd answers every write with ResourceExhausted.
- alert: EtcdPdWritesRefused
  expr: {{ printf "sum(rate(grpc_server_handled_total{grpc_code=\"ResourceExhausted\",grpc_service=\"etcdserverpb.KV\",%s}[5m])) > 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: etcd refuses writes, as it does with its NOSPACE alarm raised; make a Job from the CronJob defragment.
    runbook: docs/runbook.md#etcdpdwritesrefused
{{- end -}}

{{- define "etcd-pd.alerts.agents" -}}
{{- $all := dict "root" .root -}}
{{- include "etcd-pd.fleets" $all -}}
{{- $pods := 0 -}}
{{- $ranks := 0 -}}
{{- $startup := 0 -}}
{{- range $all.fleets -}}
{{- $least := include "etcd-pd.fleet.least" . | int -}}
{{- $pods = add $pods (mul $least .values.podsPerInstance) -}}
{{- if eq .role "prefill" -}}
{{- $ranks = add $ranks (mul $least .values.dpSize) -}}
{{- $startup = max $startup .values.startupSeconds -}}
{{- end -}}
{{- end -}}
- alert: EtcdPdAgentDown
  expr: {{ printf "(count(up{endpoint=\"metrics\",%s} == 1) or vector(0)) < %d" .pods $pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: Fewer agents answer than there should be pods; nothing is registered or resolved in the pods of the others.
    runbook: docs/runbook.md#etcdpdagentdown
# Engines announce their ranks once their weights are loaded.
- alert: EtcdPdRanksMissing
  expr: {{ printf "(count(count by (exported_instance, dp_rank) (etcd_pd_rank_rooms{%s})) or vector(0)) < %d" .prefillPods $ranks | quote }}
  for: {{ printf "%ds" (add $startup 300) }}
  labels:
    severity: warning
  annotations:
    summary: Fewer prefill ranks are announced than prefill pods have by dpSize; the others take all requests.
    runbook: docs/runbook.md#etcdpdranksmissing
- alert: EtcdPdViewStale
  expr: {{ printf "max by (pod) (etcd_pd_watch_state{state=\"stale\",%s}) == 1" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: An agent receives no events from etcd; rooms that it knows go on resolving, new ones do not.
    runbook: docs/runbook.md#etcdpdviewstale
# It takes its view for current, and sees nothing of what others see happen all the time.
- alert: EtcdPdAgentDeaf
  expr: {{ printf "max by (pod) (etcd_pd_watch_state{state=\"closed\",%[1]s}) == 1 or max by (pod) (etcd_pd_watch_state{state=\"synced\",%[2]s}) == 1 and max by (pod) (changes(etcd_pd_watch_revision{%[2]s}[2m])) == 0 and on () max(changes(etcd_pd_watch_revision{%[1]s}[2m])) > 2" .pods .decodePods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: An agent's view stands still while others' move on; decode on that node waits for rooms that are registered.
    runbook: docs/runbook.md#etcdpdagentdeaf
- alert: EtcdPdSessionNotLive
  expr: {{ printf "max by (pod) (etcd_pd_session_state{state=\"live\",%s}) == 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: An agent cannot renew its session's lease; its ranks are about to be given up, or were.
    runbook: docs/runbook.md#etcdpdsessionnotlive
- alert: EtcdPdQueueFills
  expr: {{ printf "max by (pod) (etcd_pd_queue_rooms{%[1]s}) / max by (pod) (etcd_pd_queue_limit_rooms{%[1]s}) > 0.5" .pods | quote }}
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: Registrations come faster than etcd takes them; past the limit they are refused.
    runbook: docs/runbook.md#etcdpdqueuefills
- alert: EtcdPdRegistrationsFail
  expr: {{ printf "sum(rate(etcd_pd_registrations_total{outcome!=\"Registered\",%[1]s}[5m])) / sum(rate(etcd_pd_registrations_total{%[1]s}[5m])) > 0.01" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 1 % of the rooms are not registered; the label outcome says why.
    runbook: docs/runbook.md#etcdpdregistrationsfail
- alert: EtcdPdRoomsNotResolved
  expr: {{ printf "sum(rate(etcd_pd_resolutions_total{outcome!=\"Resolved\",%[1]s}[5m])) / sum(rate(etcd_pd_resolutions_total{%[1]s}[5m])) > 0.01" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 1 % of the rooms that decode waits for end without a rank; the label outcome says why.
    runbook: docs/runbook.md#etcdpdroomsnotresolved
- alert: EtcdPdSessionLost
  expr: {{ printf "sum by (pod) (increase(etcd_pd_session_losses_total{%s}[10m])) > 0" .pods | quote }}
  for: 0m
  labels:
    severity: warning
  annotations:
    summary: An agent's session ended and its ranks came back with new epochs; the rooms that they held were lost.
    runbook: docs/runbook.md#etcdpdsessionlost
- alert: EtcdPdRoomConflicts
  expr: {{ printf "sum by (pod) (increase(etcd_pd_registrations_total{outcome=\"RoomConflict\",%s}[10m])) > 0" .pods | quote }}
  for: 0m
  labels:
    severity: warning
  annotations:
    summary: Two ranks registered the same room; all but the first were refused.
    runbook: docs/runbook.md#etcdpdroomconflicts
{{- if .root.Values.tls.enabled }}
# Renewal begins at twice that.
- alert: EtcdPdCertificateEnds
  expr: {{ printf "min by (pod) (etcd_pd_certificate_expiry_timestamp_seconds{%s}) - time() < %d" .pods (int (div (mul .root.Values.tls.renewBeforeDays 86400) 2)) | quote }}
  for: 1h
  labels:
    severity: critical
  annotations:
    summary: An agent's client certificate ends soon and was not renewed; after its end the agent cannot connect to etcd.
    runbook: docs/runbook.md#etcdpdcertificateends
{{- end }}
- alert: EtcdPdAlarm
  expr: {{ printf "max by (alarm) (etcd_pd_etcd_alarms{%s}) > 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: etcd has an alarm raised. NOSPACE, it refuses writes until somebody acts; CORRUPT, members disagree.
    runbook: docs/runbook.md#etcdpdalarm
{{- end -}}

{{/* From kube-state-metrics. Ten minutes of attempts are a run's; a run that failed stays a fact until one succeeds. */}}
{{- define "etcd-pd.alerts.certificates" -}}
{{- $job := printf "namespace=\"%s\",cronjob=\"%s-certs\"" .root.Release.Namespace (include "etcd-pd.fullname" .root) -}}
- alert: EtcdPdCertificatesNotRenewed
  expr: {{ printf "kube_cronjob_status_last_schedule_time{%[1]s} > on (namespace, cronjob) kube_cronjob_status_last_successful_time{%[1]s} or kube_cronjob_status_last_schedule_time{%[1]s} unless on (namespace, cronjob) kube_cronjob_status_last_successful_time{%[1]s}" $job | quote }}
  for: 1h
  labels:
    severity: warning
  annotations:
    summary: The Job that renews certificates does not succeed; they end within tls.renewBeforeDays, and then nobody reaches etcd.
    runbook: docs/runbook.md#etcdpdcertificatesnotrenewed
{{- end -}}
