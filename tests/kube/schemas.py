"""Whether Kubernetes would take an object: by its own schemas, and for RayClusters by one of what the chart writes.

``SEGUE_KUBERAY_CRD`` names KubeRay's own RayCluster CRD, where there is one at hand: then that is asked as well.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.kube.tools import Tools

Object = dict[str, Any]
OWN = Path(__file__).with_name("foreign_kinds.json")
REAL_CRD = os.environ.get("SEGUE_KUBERAY_CRD", "")


class Kubernetes:
    """The schemas of one version."""

    def __init__(self, tools: Tools, version: str) -> None:
        sys.path.insert(0, str(tools.packages))
        try:
            from kubernetes_validate import utils
        finally:
            sys.path.remove(str(tools.packages))
        if not hasattr(utils.schema_contents, "cache_info"):  # 1.3 MB of JSON, read anew for each object otherwise
            utils.schema_contents = functools.cache(utils.schema_contents)
        self._utils = utils
        self._version = version

    def complaints(self, thing: Object) -> list[str]:
        """What is wrong with an object; empty if nothing is."""
        own = foreign_kinds().get(thing["kind"])
        if own is not None:
            return [*_errors(own, thing), *self._templates(thing)]
        try:
            self._utils.validate(thing, self._version, strict=True)
        except self._utils.ValidationError as error:
            return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
        return []

    def _templates(self, thing: Object) -> list[str]:
        """Of a RayCluster's pods, which Kubernetes' own schema knows."""
        if thing["kind"] != "RayCluster":
            return []
        groups = [thing["spec"]["headGroupSpec"], *thing["spec"]["workerGroupSpecs"]]
        pods = [{"apiVersion": "v1", "kind": "Pod", **group["template"]} for group in groups]
        return [complaint for pod in pods for complaint in self.complaints(pod)]


@functools.cache
def foreign_kinds() -> dict[str, Object]:
    """By kind the schema of what the chart writes of kinds that Kubernetes doesn't bring itself."""
    kinds: dict[str, Object] = json.loads(OWN.read_text(encoding="utf-8"))
    return kinds


@functools.cache
def real_crd() -> Object | None:
    """KubeRay's schema, strict: what it doesn't name is refused."""
    if not REAL_CRD:
        return None
    crd = yaml.load(Path(REAL_CRD).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    version = next(each for each in crd["spec"]["versions"] if each["name"] == "v1")
    schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    _strict(schema)
    return dict(schema)


def _strict(schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["type"] = ["integer", "string"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for part in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        _strict(part)


def _errors(schema: Object, thing: Object) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(thing)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def against_the_real_crd(thing: Object) -> list[str]:
    schema = real_crd()
    assert schema is not None
    return _errors(schema, thing)
