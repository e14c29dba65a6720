{{/* A Role for one service account, and its binding. Call with (dict "root" $ "suffix" SUFFIX "rules" LIST). */}}
{{- define "etcd-pd.rbac" -}}
{{- $metadata := dict "root" .root "component" .suffix "suffix" .suffix -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "etcd-pd.fullname" .root }}-{{ .suffix }}
subjects:
  - kind: ServiceAccount
    name: {{ include "etcd-pd.account" . }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
