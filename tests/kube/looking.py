"""How tests look at rendered objects."""

from __future__ import annotations

from collections.abc import Iterator

from tests.kube.conftest import Object


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Name, metadata and spec of every pod that the objects lead to."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["metadata"], each["spec"]
        elif each["kind"] == "Deployment":
            template = each["spec"]["template"]
            yield each["metadata"]["name"], template["metadata"], template["spec"]
        elif each["kind"] == "RayCluster":
            head = each["spec"]["headGroupSpec"]["template"]
            yield "head", head["metadata"], head["spec"]
            for group in each["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group["template"]["metadata"], group["template"]["spec"]


def containers(spec: Object) -> Iterator[Object]:
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def selects(selector: Object, labels: Object) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
