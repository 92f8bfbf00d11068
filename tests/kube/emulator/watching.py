"""Watches: what happened since a version, as a stream."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from tests.kube.emulator.kinds import Kind
from tests.kube.emulator.state import Object, State

Query = dict[str, str]
Chunk = Callable[[Object], None]


def stream(state: State, kind: Kind, namespace: str, query: Query, chunk: Chunk) -> None:
    """Events from a version on, or what there is first, until ``timeoutSeconds`` or the state's watches are ended."""
    ends = time.monotonic() + float(query.get("timeoutSeconds", "60"))
    since = int(query.get("resourceVersion") or 0)

    def tell(verb: str, thing: Object) -> None:
        if wanted(thing, namespace, query):
            chunk({"type": verb, "object": thing})

    with state.changed:
        place, era = _place(state, since), state.era
        first = list(state.things[kind].values())
        version = str(state.version)
    if since and since < state.oldest:
        what = f"too old resource version: {since} ({state.oldest})"
        chunk({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": what}})
        return
    for each in [] if since else first:
        tell("ADDED", each)
    if query.get("sendInitialEvents") == "true":
        chunk(_bookmark(kind, version, {"k8s.io/initial-events-end": "true"}))
    while (left := ends - time.monotonic()) > 0 and era == state.era:
        with state.changed:
            state.changed.wait_for(lambda at=place: at < len(state.events) or era != state.era, left)
            events, place = state.events[place:], len(state.events)
            version = str(state.version)
        for event in (event for event in events if event.kind is kind):
            tell(event.verb, event.thing)
    if query.get("allowWatchBookmarks") == "true":
        chunk(_bookmark(kind, version, {}))


def _place(state: State, since: int) -> int:
    """Of the first event after that version; of the next one that will be, where it is 0."""
    later = (at for at, event in enumerate(state.events) if event.version > since)
    return next(later, len(state.events)) if since else len(state.events)


def _bookmark(kind: Kind, version: str, annotations: dict[str, str]) -> Object:
    meta = {"resourceVersion": version, "annotations": annotations}
    return {"type": "BOOKMARK", "object": {"kind": kind.name, "apiVersion": kind.api_version, "metadata": meta}}


def line(thing: Object) -> bytes:
    """As one chunk of HTTP."""
    text = json.dumps(thing).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(text), text)


def wanted(thing: Object, namespace: str, query: Query) -> bool:
    """By namespace, label selector (equality and sets) and the field metadata.name."""
    meta = thing["metadata"]
    labels = meta.get("labels") or {}
    for term in re.findall(r"(?:[^,(]|\([^)]*\))+", query.get("labelSelector", "")):
        if sets := re.fullmatch(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*", term):
            inside = labels.get(sets[1]) in [each.strip() for each in sets[3].split(",")]
            if inside != (sets[2] == "in"):
                return False
        elif "=" in term:
            name, value = re.split("!=|==|=", term)
            if (labels.get(name) == value) == ("!=" in term):
                return False
        elif term not in labels:
            return False
    field = re.fullmatch(r"metadata\.name==?(.+)", query.get("fieldSelector", ""))
    return (not namespace or meta.get("namespace") == namespace) and (not field or field[1] == meta["name"])
