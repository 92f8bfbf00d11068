{{/* The configuration's text, as `segue up` reads it. */}}
{{- define "segue.text" -}}
{{- if and .Values.clusterFile .Values.cluster -}}
{{- fail "clusterFile and cluster: set one of them" -}}
{{- else if .Values.clusterFile -}}
{{- .Values.clusterFile -}}
{{- else if .Values.cluster -}}
{{- toYaml .Values.cluster -}}
{{- else -}}
{{- fail "cluster: nothing to serve. What `segue up` takes goes here: --set-file clusterFile=configs/local.yaml, or a cluster: block" -}}
{{- end -}}
{{- end -}}

{{- define "segue.spec" -}}
{{- $spec := include "segue.text" . | fromYaml -}}
{{- if hasKey $spec "Error" -}}
{{- fail (printf "clusterFile: not valid YAML: %s" $spec.Error) -}}
{{- end -}}
{{- if not (dig "cluster" "name" "" $spec) -}}
{{- fail "cluster.cluster.name: the configuration needs `cluster: {name: ...}`" -}}
{{- end -}}
{{- if not (kindIs "slice" $spec.models) -}}
{{- fail "cluster.models: the configuration needs a list of models" -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end -}}

{{/* The port of an endpoint of the configuration: {"spec", "section", "key", "default"}. */}}
{{- define "segue.port" -}}
{{- $at := dig .section .key .default .spec -}}
{{- $port := regexFind "[0-9]+$" $at | int -}}
{{- if not $port -}}
{{- fail (printf "cluster.%s.%s: %q has no port of its own; Services need one" .section .key $at) -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{/* A count of a pool that has to be a number here: {"pool", "key", "path"}. */}}
{{- define "segue.count" -}}
{{- $value := dig .key 1 .pool -}}
{{- if eq (toString $value) "auto" -}}
{{- fail (printf "%s.%s: `auto` can't be turned into pods. `segue plan CONFIG --inventory NODES` says which number it is" .path .key) -}}
{{- end -}}
{{- if or (ne (toString ($value | int)) (toString $value)) (lt ($value | int) 1) -}}
{{- fail (printf "%s.%s: %v is no whole number from 1" .path .key $value) -}}
{{- end -}}
{{- $value | int -}}
{{- end -}}

{{/* A name for Kubernetes; what has to be changed for it gets a digest, so that two models never have one name. core.planning.owners makes the same. */}}
{{- define "segue.dns" -}}
{{- $plain := regexReplaceAll "[^a-z0-9-]+" (lower .) "-" | trunc 30 | trimAll "-" -}}
{{- if eq $plain . -}}{{ $plain }}{{- else -}}{{ default "model" $plain }}-{{ sha256sum . | trunc 5 }}{{- end -}}
{{- end -}}

{{/*
The worker groups that the configuration's pools come to, as a YAML list of
{name, model, source, role, gpus: of a pod, hosts: pods of a replica, replicas: of the group, together: replicas of the pool
in one of these, settings: of its pods}.
*/}}
{{- define "segue.groups" -}}
{{- $root := . -}}
{{- $spec := include "segue.spec" . | fromYaml -}}
{{- $groups := list -}}
{{- $known := dict -}}
{{- range $index, $model := $spec.models -}}
{{- if regexMatch "^[.~]" (default "" $model.source) -}}
{{- fail (printf "cluster.models[%d].source: %s is a folder beside the file; in pods it has to be an absolute path (of /cache, or of extraVolumeMounts), or a Hugging Face id" $index $model.source) -}}
{{- end -}}
{{- range $role, $pool := (required (printf "cluster.models[%d].pools: prefill and decode, or serve" $index) $model.pools) -}}
{{- $path := printf "cluster.models[%d].pools.%s" $index $role -}}
{{- $pool = default dict $pool -}}
{{- $cut := include "segue.cut" (dict "root" $root "pool" $pool "path" $path) | fromYaml -}}
{{- $own := dig $model.name $role dict $root.Values.workers.pools -}}
{{- $_ := set $known (printf "%s/%s" $model.name $role) true -}}
{{- $settings := mergeOverwrite (deepCopy (omit $root.Values.workers "pools")) (deepCopy $own) -}}
{{- $where := ternary (printf "workers.pools.%s.%s" $model.name $role) "workers" (hasKey $own "resources") -}}
{{- include "segue.cores.enough" (dict "settings" $settings "gpus" $cut.gpus "where" $where) -}}
{{- $_ := set $settings "resources" (include "segue.resources" (dict "resources" $settings.resources "where" (printf "%s.resources" $where)) | fromYaml) -}}
{{- $groups = append $groups (merge (dict "name" (printf "%s-%s" (include "segue.dns" $model.name) $role) "model" $model.name "source" $model.source "role" $role "settings" $settings) $cut) -}}
{{- end -}}
{{- end -}}
{{- range $model, $pools := $root.Values.workers.pools -}}
{{- range $role, $_ := $pools -}}
{{- if not (hasKey $known (printf "%s/%s" $model $role)) -}}
{{- fail (printf "workers.pools.%s.%s: the configuration has no such pool; it has %s" $model $role (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end -}}

{{/* The worker groups' counts in what runs, by name; of none where nothing does, or nobody can be asked (helm template). */}}
{{- define "segue.counts" -}}
{{- $counts := dict -}}
{{- $there := lookup "ray.io/v1" "RayCluster" .Release.Namespace (include "segue.fullname" .) -}}
{{- range (dig "spec" "workerGroupSpecs" list $there) -}}
{{- $_ := set $counts .groupName (default 0 .replicas) -}}
{{- end -}}
{{- toYaml $counts -}}
{{- end -}}

{{/* How a pool is cut into pods: {gpus, hosts, replicas, together: replicas of the pool in one of the group}. */}}
{{- define "segue.cut" -}}
{{- $tensor := include "segue.count" (dict "pool" .pool "key" "tensor_parallel" "path" .path) | int -}}
{{- $pipeline := include "segue.count" (dict "pool" .pool "key" "pipeline_parallel" "path" .path) | int -}}
{{- $replicas := include "segue.count" (dict "pool" .pool "key" "replicas" "path" .path) | int -}}
{{- $gpus := 0 -}}
{{- $hosts := 1 -}}
{{- $together := 1 -}}
{{- if or (eq (dig "device" "" .pool) "gpu") (dig "gpu" "" .pool) -}}
{{- if ne .root.Values.accelerator "gpu" -}}
{{- fail (printf "accelerator: it is %s, but %s asks for GPUs; set accelerator=gpu" .root.Values.accelerator .path) -}}
{{- end -}}
{{- $most := .root.Values.gpu.perPod | int -}}
{{- if gt $tensor $most -}}
{{- fail (printf "gpu.perPod: %s.tensor_parallel is %d, and a stage can't be cut between pods of %d GPUs" .path $tensor $most) -}}
{{- end -}}
{{- $hosts = $pipeline -}}
{{- range $stages := untilStep $pipeline 0 -1 -}}
{{- if and (eq (mod $pipeline $stages) 0) (le (mul $tensor $stages) $most) (eq $hosts $pipeline) (gt $stages 1) -}}
{{- $hosts = div $pipeline $stages -}}
{{- end -}}
{{- end -}}
{{- $gpus = div (mul $tensor $pipeline) $hosts -}}
{{- $share := dig "share" 1.0 .pool | float64 -}}
{{- if lt $share 1.0 -}}
{{- $together = divf 1.0001 $share | floor | int -}}
{{- $replicas = divf $replicas $together | ceil | int -}}
{{- end -}}
{{- end -}}
gpus: {{ $gpus }}
hosts: {{ $hosts }}
together: {{ $together }}
replicas: {{ $replicas }}
{{- end -}}

{{/* Cores of a Kubernetes quantity, rounded up. */}}
{{- define "segue.cores" -}}
{{- if hasSuffix "m" . -}}{{ divf (trimSuffix "m" . | float64) 1000 | ceil | int }}{{- else -}}{{ . | float64 | ceil | int }}{{- end -}}
{{- end -}}

{{/* Segue reserves a core with each GPU: with fewer, Ray would never place the replica. */}}
{{- define "segue.cores.enough" -}}
{{- $cores := include "segue.cores" (dig "resources" "requests" "cpu" "1" .settings | toString) | int -}}
{{- if lt $cores (.gpus | int) -}}
{{- fail (printf "%s.resources.requests.cpu: %d cores for %d GPUs; a GPU needs a core beside it" .where $cores (.gpus | int)) -}}
{{- end -}}
{{- end -}}
