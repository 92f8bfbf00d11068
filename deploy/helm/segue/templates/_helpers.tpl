{{- define "segue.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: KubeRay makes names of pods and Services from it, and cuts those that get too long. */}}
{{- define "segue.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "segue.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "segue.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of every object; {"root": $, "component": NAME}. KubeRay sets app.kubernetes.io/name of its pods to its own. */}}
{{- define "segue.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: segue
{{ include "segue.selector" . }}
{{- end -}}

{{- define "segue.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "segue.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "segue.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount that is there, or set serviceAccount.create" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* {"root", "for": cpu or gpu}. */}}
{{- define "segue.image" -}}
{{- printf "%s:%s-%s" .root.Values.image.repository (default .root.Chart.AppVersion .root.Values.image.tag) .for -}}
{{- end -}}

{{/* The seconds that everything which ends waits for: {"linger", "drain", "grace"}. One value decides: drain_timeout. */}}
{{- define "segue.ending" -}}
{{- $spec := include "segue.spec" . | fromYaml -}}
{{- $drain := dig "controller" "drain_timeout" 30 $spec | float64 | ceil | int -}}
{{- $linger := .Values.drain.lingerSeconds | int -}}
linger: {{ $linger }}
drain: {{ $drain }}
grace: {{ add $linger $drain (.Values.drain.marginSeconds | int) }}
{{- end -}}

{{- define "segue.claim" -}}
{{- if eq .Values.cache.mode "existingClaim" -}}
{{- required "cache.existingClaim: cache.mode is existingClaim, so name the claim" .Values.cache.existingClaim -}}
{{- else -}}
{{- include "segue.fullname" . }}-cache
{{- end -}}
{{- end -}}
