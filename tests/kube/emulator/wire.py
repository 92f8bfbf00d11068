"""Kubernetes' protobuf form of the few things that helm sends in it: its own records, and options of a deletion."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\x00"
META_TEXT = {1: "name", 2: "generateName", 3: "namespace", 6: "resourceVersion"}
META_MAPS = {11: "labels", 12: "annotations"}


def decoded(body: bytes) -> dict[str, Any]:
    """A Secret or ConfigMap as it would be in JSON; of anything else its kind alone. ValueError."""
    if not body.startswith(MAGIC):
        raise ValueError("no protobuf of Kubernetes")
    envelope = dict(_fields(body[len(MAGIC) :]))
    words = {number: value.decode() for number, value in _fields(envelope[1])}
    thing: dict[str, Any] = {"apiVersion": words.get(1, ""), "kind": words.get(2, "")}
    if thing["kind"] not in ("Secret", "ConfigMap"):
        return thing
    thing["metadata"] = {}
    for number, value in _fields(envelope[2]):
        if number == 1:
            thing["metadata"] = _meta(value)
        elif number == 2:
            name, content = _entry(value)
            text = base64.b64encode(content).decode() if thing["kind"] == "Secret" else content.decode()
            thing.setdefault("data", {})[name] = text
        elif number == 3 and thing["kind"] == "Secret":
            thing["type"] = value.decode()
    return thing


def _meta(body: bytes) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for number, value in _fields(body):
        if number in META_TEXT and value:
            meta[META_TEXT[number]] = value.decode()
        elif number in META_MAPS:
            name, content = _entry(value)
            meta.setdefault(META_MAPS[number], {})[name] = content.decode()
    return meta


def _entry(body: bytes) -> tuple[str, bytes]:
    parts = dict(_fields(body))
    return parts[1].decode(), parts.get(2, b"")


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value: bytes, or an int where the wire has one."""
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        if tag & 7 == 2:
            size, at = _varint(body, at)
            yield tag >> 3, body[at : at + size]
            at += size
        elif tag & 7 == 0:
            value, at = _varint(body, at)
            yield tag >> 3, value
        else:
            raise ValueError(f"wire type {tag & 7}")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (body[at] & 0x7F) << shift
        at, shift, last = at + 1, shift + 7, body[at] < 0x80
        if last:
            return value, at
