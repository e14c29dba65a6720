{{/* A Role for one service account, and its binding; for a hook's account these and the account itself, which exist only while
     it runs. Call with (dict "root" $ "component" NAME "suffix" SUFFIX "account" SUFFIX "rules" LIST "hook" EVENTS), of which
     component and account are the suffix where they are left out. */}}
{{- define "etcd-pd.rbac" -}}
{{- $metadata := dict "root" .root "component" (.component | default .suffix) "suffix" .suffix -}}
{{- $account := .account | default .suffix -}}
{{- if and .hook .root.Values.serviceAccount.create }}
{{- include "etcd-pd.serviceAccount" (merge (dict "hook" .hook "suffix" $account) $metadata) }}
---
{{ end -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
  {{- with include "etcd-pd.hook" (dict "events" .hook "weight" -2) }}{{ nindent 2 . }}{{ end }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "etcd-pd.metadata" $metadata | nindent 2 }}
  {{- with include "etcd-pd.hook" (dict "events" .hook "weight" -1) }}{{ nindent 2 . }}{{ end }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "etcd-pd.fullname" .root }}-{{ .suffix }}
subjects:
  - kind: ServiceAccount
    name: {{ include "etcd-pd.account" (dict "root" .root "suffix" $account) }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* A service account, whose pods get a token only where they ask for one. Call with (dict "root" $ "component" NAME "suffix" SUFFIX "hook" EVENTS). */}}
{{- define "etcd-pd.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "etcd-pd.account" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "etcd-pd.labels" . | nindent 4 }}
  {{- with include "etcd-pd.hook" (dict "events" .hook "weight" -2 "values" .root.Values.serviceAccount.annotations) }}{{ nindent 2 . }}{{ end }}
automountServiceAccountToken: false
{{- end -}}

{{/* annotations: of a hook's object, which goes when the hook succeeded, on top of those of the values.
     Call with (dict "events" EVENTS "weight" NUMBER "values" MAP); without events there are only the values. */}}
{{- define "etcd-pd.hook" -}}
{{- $own := dict -}}
{{- if .events -}}
{{- $own = dict "helm.sh/hook" .events "helm.sh/hook-weight" (toString .weight) "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
{{- end -}}
{{- include "etcd-pd.annotations" (dict "own" $own "values" (.values | default dict)) -}}
{{- end -}}
