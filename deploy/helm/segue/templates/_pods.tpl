{{/* What every container has: {"root", "env": more of it}. */}}
{{- define "segue.env" -}}
- {name: HOME, value: /home/segue}
- {name: SEGUE_HOME, value: /home/segue/.segue}
- {name: SEGUE_CACHE, value: /cache/segue}
- {name: HF_HOME, value: /cache/huggingface}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- with .Values.cache.huggingFaceToken }}
{{- if .secret }}
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "segue.mounts" -}}
- {name: home, mountPath: /home/segue}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "segue.volumes" -}}
- {name: home, emptyDir: {}}
- {name: tmp, emptyDir: {}}
- name: cache
{{- if eq .Values.cache.mode "emptyDir" }}
  emptyDir: {sizeLimit: {{ .Values.cache.size | quote }}}
{{- else if eq .Values.cache.mode "hostPath" }}
  hostPath:
    path: {{ required "cache.hostPath: cache.mode is hostPath, so name the folder" .Values.cache.hostPath }}
    type: DirectoryOrCreate
{{- else }}
  persistentVolumeClaim: {claimName: {{ include "segue.claim" . }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The head of every pod's spec: {"root", "settings": nodeSelector, tolerations, affinity ..., "token": whether it calls Kubernetes}. */}}
{{- define "segue.pod" -}}
{{- $root := .root -}}
serviceAccountName: {{ include "segue.serviceAccount" $root }}
automountServiceAccountToken: {{ .token }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with $root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Of Ray's pods. */}}
{{- define "segue.container" -}}
image: {{ include "segue.image" (dict "root" . "for" .Values.accelerator) | quote }}
{{ include "segue.container.rest" . }}
{{- end -}}

{{/* Of gateways: vLLM's GPU build, whose front end they run, does not start where there is no GPU. */}}
{{- define "segue.container.cpu" -}}
image: {{ include "segue.image" (dict "root" . "for" "cpu") | quote }}
{{ include "segue.container.rest" . }}
{{- end -}}

{{- define "segue.container.rest" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Spread constraints with their selector: {"spread", "labels": a YAML map}. */}}
{{- define "segue.spread" -}}
{{- $labels := .labels | fromYaml -}}
{{- $constraints := list -}}
{{- range .spread -}}
{{- $constraints = append $constraints (mergeOverwrite (dict "labelSelector" (dict "matchLabels" $labels)) .) -}}
{{- end -}}
{{- toYaml $constraints -}}
{{- end -}}

{{/* A probe with the operator's fields over it: {"probe": a YAML map, "over": the operator's}. */}}
{{- define "segue.probe" -}}
{{- mergeOverwrite (.probe | fromYaml) (default dict .over) | toYaml -}}
{{- end -}}

{{/* Labels of a pod: {"root", "component"}. */}}
{{- define "segue.podLabels" -}}
{{ include "segue.labels" . }}
{{- with .root.Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Keeps a Ray pod alive while gateways finish what runs on it. */}}
{{- define "segue.lifecycle" -}}
{{- $ending := include "segue.ending" . | fromYaml -}}
preStop:
  exec:
    command: [sleep, {{ add $ending.linger $ending.drain | quote }}]
{{- end -}}

{{/*
A container's resources: {"resources", "where": their key}. Memory is limited to what is requested, unless a limit is set:
Kubernetes refuses pods that request more than their limit, and says so in the operator's events only.
*/}}
{{- define "segue.resources" -}}
{{- $resources := deepCopy (default dict .resources) -}}
{{- $requests := default dict $resources.requests -}}
{{- $limits := default dict $resources.limits -}}
{{- if and $requests.memory (not (hasKey $limits "memory")) -}}
{{- $limits = merge (dict "memory" $requests.memory) $limits -}}
{{- end -}}
{{- range $name, $asked := $requests -}}
{{- if hasKey $limits $name -}}
{{- $most := get $limits $name -}}
{{- if gt (include "segue.quantity" (toString $asked) | float64) (include "segue.quantity" (toString $most) | float64) -}}
{{- fail (printf "%s.requests.%s: %v is over limits.%s, %v" $.where $name $asked $name $most) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $limits -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* A Kubernetes quantity as a number. */}}
{{- define "segue.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- mulf (trimSuffix $unit . | float64) (get $units $unit | default 1 | float64) -}}
{{- end -}}
