{{/* Gives every value that is missing its default, in place. A release that an older chart made and that is upgraded with
     --reuse-values has that chart's values alone; templates cannot read values.yaml. The first line of every template. */}}
{{- define "etcd-pd.defaults" -}}
{{- range $path, $default := .Files.Get "files/defaults.json" | fromJson -}}
{{- $words := splitList "." $path -}}
{{- $at := $.Values -}}
{{- range initial $words -}}
{{- if not (kindIs "map" (get $at .)) }}{{ $_ := set $at . dict }}{{ end -}}
{{- $at = get $at . -}}
{{- end -}}
{{- if not (hasKey $at (last $words)) }}{{ $_ := set $at (last $words) $default }}{{ end -}}
{{- end -}}
{{- end -}}
