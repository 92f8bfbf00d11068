"""All objects, their history for watches, and what the emulator makes up in the place of controllers."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.kube.emulator.kinds import KINDS, Kind, Schemas
from tests.kube.emulator.ownership import ConflictError, Owners
from tests.kube.emulator.patches import JSON_PATCH, PatchError, merged, patched, strategic
from tests.kube.schemas import Kubernetes

Object = dict[str, Any]
Key = tuple[str, str]  # namespace and name
APPLY, STRATEGIC, MERGE = (
    f"application/{kind}" for kind in ("apply-patch+yaml", "strategic-merge-patch+json", "merge-patch+json")
)
# The whole of what Kubernetes says of a JSON patch that can't be applied, be it that a `test` in it fails.
CANNOT_APPLY = "the server rejected our request due to an error in our request"
GENERATED = ("uid", "creationTimestamp", "generation", "resourceVersion")


class RefusedError(Exception):
    """What the server answers with instead."""

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.headers = code, reason, headers


@dataclass(frozen=True)
class Event:
    version: int
    verb: str
    kind: Kind
    thing: Object


@dataclass
class State:
    """Every method is called with ``changed`` held."""

    schemas: Schemas
    kubernetes: Kubernetes
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    things: dict[Kind, dict[Key, Object]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    owners: dict[tuple[Kind, Key], Owners] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    version: int = 100
    oldest: int = 0  # version from which a watch may begin
    era: int = 0  # of watches: those of an earlier one end
    dropping: bool = False

    def get(self, kind: Kind, key: Key) -> Object:
        if key not in self.things[kind]:
            raise RefusedError(404, "NotFound", f'{kind.full} "{key[1]}" not found')
        return self.things[kind][key]

    def create(self, kind: Kind, namespace: str, thing: Object, manager: str, *, dry: bool = False) -> Object:
        meta = thing.setdefault("metadata", {})
        if kind.namespaced:
            meta["namespace"] = namespace
            if ("", namespace) not in self.things[KINDS[0]]:
                raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found')
        if "generateName" in meta and "name" not in meta:
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        key = (namespace if kind.namespaced else "", meta["name"])
        if key in self.things[kind]:
            raise RefusedError(409, "AlreadyExists", f'{kind.full} "{key[1]}" already exists')
        self._check(kind, thing)
        if dry:
            return thing
        self._owners(kind, key).update(manager, {}, thing, self.schemas.of(kind), self.schemas)
        return self._store(kind, key, thing)

    def replace(self, kind: Kind, key: Key, thing: Object, manager: str, *, dry: bool = False) -> Object:
        old = self.get(kind, key)
        self._unchanged_since(kind, key, thing)
        return self._change(kind, key, old, thing, manager, dry=dry)

    def patch(self, kind: Kind, key: Key, form: str, patch: Object, manager: str, *, force: bool, dry: bool) -> Object:
        """Raises RefusedError; with 409 where another manager has what it would change."""
        if form == APPLY:
            return self._apply(kind, key, patch, manager, force=force, dry=dry)
        old = self.get(kind, key)
        self._unchanged_since(kind, key, patch)
        if form == JSON_PATCH:
            try:
                new = patched(old, patch["operations"])
            except PatchError:
                raise RefusedError(422, "Invalid", CANNOT_APPLY) from None
            self._unchanged_since(kind, key, new)
        elif form == MERGE:
            new = merged(old, patch)
        elif form == STRATEGIC and kind.group not in ("ray.io", "gateway.networking.k8s.io", "monitoring.coreos.com"):
            new = strategic(old, patch, self.schemas.of(kind), self.schemas)
        else:
            raise RefusedError(415, "UnsupportedMediaType", f"{form} is no form of patch for {kind.full}")
        return self._change(kind, key, old, copy.deepcopy(new), manager, dry=dry)

    def scale(self, kind: Kind, key: Key, replicas: int, manager: str) -> Object:
        old = self.get(kind, key)
        new = copy.deepcopy(old)
        new["spec"]["replicas"] = replicas
        return self._change(kind, key, old, new, manager, dry=False)

    def delete(self, kind: Kind, key: Key) -> Object:
        thing = self.get(kind, key)
        del self.things[kind][key]
        self.owners.pop((kind, key), None)
        self._tell("DELETED", kind, thing)
        uid = thing["metadata"]["uid"]
        for other, things in self.things.items():
            for name, each in list(things.items()):
                if any(owner["uid"] == uid for owner in each["metadata"].get("ownerReferences", [])):
                    self.delete(other, name)
        return thing

    def _apply(self, kind: Kind, key: Key, wish: Object, manager: str, *, force: bool, dry: bool) -> Object:
        old = self.things[kind].get(key)
        owners = copy.deepcopy(self._owners(kind, key))
        base = old or {"apiVersion": wish["apiVersion"], "kind": wish["kind"], "metadata": {}}
        try:
            new = owners.apply(manager, base, wish, self.schemas.of(kind), self.schemas, force=force)
        except ConflictError as conflict:
            raise RefusedError(409, "Conflict", str(conflict)) from None
        new["metadata"] |= {"name": key[1]} | ({"namespace": key[0]} if kind.namespaced else {})
        self._check(kind, new)
        if dry:
            return new
        self.owners[kind, key] = owners
        fields = [
            {
                "manager": name,
                "operation": "Apply",
                "apiVersion": kind.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": {},
            }
            for name in owners.applied
        ]
        new["metadata"]["managedFields"] = [{**each, "time": _now()} for each in fields]
        return self._store(kind, key, new)

    def _change(self, kind: Kind, key: Key, old: Object, new: Object, manager: str, *, dry: bool) -> Object:
        self._check(kind, new)
        if kind.plural == "deployments" and old["spec"]["selector"] != new["spec"]["selector"]:
            raise RefusedError(
                422, "Invalid", f'Deployment.apps "{key[1]}" is invalid: spec.selector: field is immutable'
            )
        if dry:
            return new
        self._owners(kind, key).update(manager, old, new, self.schemas.of(kind), self.schemas)
        return self._store(kind, key, new)

    def _owners(self, kind: Kind, key: Key) -> Owners:
        return self.owners.setdefault((kind, key), Owners())

    def _unchanged_since(self, kind: Kind, key: Key, thing: Object) -> None:
        seen = thing.get("metadata", {}).get("resourceVersion")
        if seen and seen != self.get(kind, key)["metadata"]["resourceVersion"]:
            what = "the object has been modified; please apply your changes to the latest version and try again"
            raise RefusedError(409, "Conflict", f'Operation cannot be fulfilled on {kind.full} "{key[1]}": {what}')

    def _check(self, kind: Kind, thing: Object) -> None:
        """As a strict request would be: an unknown field is as wrong as a wrong one."""
        asked = {name: value for name, value in thing.items() if name != "status"}
        complaints = self.kubernetes.complaints(asked) or event_rules(asked)
        if complaints:
            name = thing.get("metadata", {}).get("name", "")
            raise RefusedError(422, "Invalid", f'{kind.name} "{name}" is invalid: {complaints[0]}')

    def _store(self, kind: Kind, key: Key, thing: Object) -> Object:
        old, meta = self.things[kind].get(key), thing["metadata"]
        meta |= {"name": key[1]} | ({"namespace": key[0]} if kind.namespaced else {})
        if old is None:
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
        else:
            meta |= {name: old["metadata"][name] for name in ("uid", "creationTimestamp", "generation")}
            meta["generation"] += old.get("spec") != thing.get("spec")
        _report(kind, thing)
        self.things[kind][key] = thing
        self._tell("ADDED" if old is None else "MODIFIED", kind, thing)
        if kind.plural == "deployments":
            self._roll(key, thing)
        return thing

    def _tell(self, verb: str, kind: Kind, thing: Object) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.events.append(Event(self.version, verb, kind, copy.deepcopy(thing)))
        self.changed.notify_all()

    def _roll(self, key: Key, deployment: Object) -> None:
        """The ReplicaSet of the newest template, by which helm 3 tells whether a Deployment is up."""
        template = copy.deepcopy(deployment["spec"]["template"])
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:9]
        template["metadata"]["labels"]["pod-template-hash"] = digest
        kind = next(each for each in KINDS if each.name == "ReplicaSet")
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": key[1], "uid": deployment["metadata"]["uid"]}
        name = f"{key[1]}-{digest}"
        meta = {"name": name, "namespace": key[0], "ownerReferences": [{**owner, "controller": True}]}
        meta["labels"] = dict(template["metadata"]["labels"])
        spec = {"replicas": deployment["spec"]["replicas"], "template": template}
        spec["selector"] = {
            "matchLabels": deployment["spec"]["selector"]["matchLabels"] | {"pod-template-hash": digest}
        }
        thing = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
        self._store(kind, (key[0], name), thing)


def event_rules(thing: Object) -> list[str]:
    """What Kubernetes asks of a new Event beyond its schema."""
    if (thing["apiVersion"], thing["kind"]) != ("events.k8s.io/v1", "Event"):
        return []
    wrong = [name for name in ("eventTime", "action", "reason", "reportingController") if not thing.get(name)]
    wrong += [name for name in ("action", "reason", "reportingInstance") if len(thing.get(name, "")) > 128]
    if not thing.get("reportingInstance"):
        wrong.append("reportingInstance")
    if thing.get("type") not in ("Normal", "Warning"):
        wrong.append("type")
    if len(thing.get("note", "").encode()) > 1024:
        wrong.append("note")
    if thing.get("regarding", {}).get("namespace") != thing["metadata"].get("namespace"):
        wrong.append("involvedObject.namespace")
    if any(name.startswith("deprecated") for name in thing):
        wrong.append("deprecated fields")
    return [f"{name}: not as it has to be" for name in wrong]


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _report(kind: Kind, thing: Object) -> None:
    """What a controller or a kubelet would say of it once all went well."""
    generation = thing["metadata"]["generation"]
    if kind.plural in ("deployments", "replicasets"):
        count = thing["spec"].setdefault("replicas", 1)
        status = {
            "observedGeneration": generation,
            "replicas": count,
            "readyReplicas": count,
            "availableReplicas": count,
        }
        if kind.plural == "deployments":
            reasons = {"Available": "MinimumReplicasAvailable", "Progressing": "NewReplicaSetAvailable"}
            up = [{"type": each, "status": "True", "reason": reasons[each]} for each in reasons]
            status |= {"updatedReplicas": count, "conditions": up}
        thing["status"] = status
    elif kind.plural == "pods":
        once = thing["spec"].get("restartPolicy") == "Never"
        ready = {"type": "Ready", "status": "False" if once else "True"}
        well = {"phase": "Succeeded" if once else "Running", "conditions": [ready], "startTime": _now()}
        thing.setdefault("status", well)  # or what somebody said of it since
    elif kind.plural == "services":
        thing["spec"].setdefault("clusterIP", f"10.96.0.{generation}")
    elif kind.plural == "persistentvolumeclaims":
        thing["status"] = {"phase": "Bound"}
    elif kind.plural == "namespaces":
        thing["status"] = {"phase": "Active"}
