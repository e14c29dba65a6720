{{/* Rules of the alerts, in two groups: etcd's own metrics, and those of the agents. Call with (dict "root" $ "pods" SELECTOR). */}}

{{- define "etcd-pd.alerts.etcd" -}}
- alert: EtcdPdNoLeader
  expr: {{ printf "min(etcd_server_has_leader{%s}) == 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: A member of etcd sees no leader; known rooms go on resolving, new ones wait.
- alert: EtcdPdMemberDown
  expr: {{ printf "count(up{%s} == 1) < %d" .pods (int .root.Values.etcd.replicas) | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A member of etcd is down.
- alert: EtcdPdDatabaseFills
  expr: {{ printf "max by (pod) (etcd_mvcc_db_total_size_in_use_in_bytes{%[1]s}) / max by (pod) (etcd_server_quota_backend_bytes{%[1]s}) > 0.7" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 70 % of etcd's quota is in use; raise the quota, or shorten compactionRetention.
# The quota holds for the file, with the pages in it that are free.
- alert: EtcdPdDatabaseNearQuota
  expr: {{ printf "max by (pod) (etcd_mvcc_db_total_size_in_bytes{%[1]s}) / max by (pod) (etcd_server_quota_backend_bytes{%[1]s}) > 0.9" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The file of etcd's database is near the quota, where etcd refuses writes; defragment, or raise the quota.
# With the NOSPACE alarm raised, etcd answers every write with ResourceExhausted.
- alert: EtcdPdWritesRefused
  expr: {{ printf "sum(rate(grpc_server_handled_total{grpc_code=\"ResourceExhausted\",grpc_service=\"etcdserverpb.KV\",%s}[5m])) > 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: etcd refuses writes, as it does with its NOSPACE alarm raised; compact, defragment, disarm the alarm.
{{- end -}}

{{- define "etcd-pd.alerts.agents" -}}
- alert: EtcdPdViewStale
  expr: {{ printf "max by (pod) (etcd_pd_watch_state{state=\"stale\",%s}) == 1" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: An agent hears nothing from etcd; rooms that it knows go on resolving, new ones do not.
- alert: EtcdPdSessionNotLive
  expr: {{ printf "max by (pod) (etcd_pd_session_state{state=\"live\",%s}) == 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: An agent cannot renew its session's lease; its ranks are about to be given up, or were.
- alert: EtcdPdQueueFills
  expr: {{ printf "max by (pod) (etcd_pd_queue_rooms{%[1]s}) / max by (pod) (etcd_pd_queue_limit_rooms{%[1]s}) > 0.5" .pods | quote }}
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: Registrations come faster than etcd takes them; past the limit they are refused.
- alert: EtcdPdRegistrationsFail
  expr: {{ printf "sum(rate(etcd_pd_registrations_total{outcome!=\"Registered\",%[1]s}[5m])) / sum(rate(etcd_pd_registrations_total{%[1]s}[5m])) > 0.01" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 1 % of the rooms are not registered; the label outcome says why.
- alert: EtcdPdRoomsNotResolved
  expr: {{ printf "sum(rate(etcd_pd_resolutions_total{outcome!=\"Resolved\",%[1]s}[5m])) / sum(rate(etcd_pd_resolutions_total{%[1]s}[5m])) > 0.01" .pods | quote }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: More than 1 % of the rooms that decode waits for end without a rank; the label outcome says why.
- alert: EtcdPdSessionLost
  expr: {{ printf "sum by (pod) (increase(etcd_pd_session_losses_total{%s}[10m])) > 0" .pods | quote }}
  for: 0m
  labels:
    severity: warning
  annotations:
    summary: An agent's session ended and its ranks came back with new epochs; the rooms that they held were lost.
- alert: EtcdPdRoomConflicts
  expr: {{ printf "sum by (pod) (increase(etcd_pd_registrations_total{outcome=\"RoomConflict\",%s}[10m])) > 0" .pods | quote }}
  for: 0m
  labels:
    severity: warning
  annotations:
    summary: Two ranks registered the same room; all but the first were refused.
- alert: EtcdPdAlarm
  expr: {{ printf "max by (alarm) (etcd_pd_etcd_alarms{%s}) > 0" .pods | quote }}
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: etcd has an alarm raised. NOSPACE, it refuses writes until somebody acts; CORRUPT, members disagree.
{{- end -}}
