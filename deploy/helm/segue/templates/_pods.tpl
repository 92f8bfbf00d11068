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
