"""The OpenAPI document of what clients may reach: vLLM's words for its routes, ours for our own and for errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from orchestrator.gateway.http_errors import is_anthropic
from orchestrator.gateway.routes import MODEL_PREFIX, MODEL_ROUTES, OWN_ROUTES

Document = dict[str, Any]

_REFUSALS = {
    400: "Wrong in itself: the same request will be refused again",
    404: "No such model, or no such route",
    405: "Another method is right",
    408: "No more of the body came",
    413: "The body is too large",
    429: "The tenant has more waiting than it may",
    431: "Request line and headers are too large",
    500: "The request failed inside the gateway",
    503: "Nobody can take it now",
    504: "Its deadline passed",
}
_ALWAYS_OPENAI = frozenset({405, 431})  # told before the path says whose client it is, or by the server below
_TEXT = {"type": "string"}
_ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "description": "docs/api.md lists them"},
            },
        }
    },
}
_ANTHROPIC_ERROR: Document = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_SUMMARIES = {
    "/health": "200 while the process lives",
    "/ready": "200 when every pool has a ready worker",
    "/metrics": "Prometheus",
    "/openapi.json": "This document",
    "/v1/models": "All models",
}


def document(of_models: Iterable[Document]) -> Document:
    """One document of all models' applications (each as FastAPI makes it), without what clients may not reach."""
    paths: Document = {path: {"get": _own(path)} for path in OWN_ROUTES}
    paths[MODEL_PREFIX + "{name}"] = {"get": _one_model()}
    schemas: Document = {"Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR}
    for each in of_models:
        available = each.get("components", {}).get("schemas", {})
        for path, method in MODEL_ROUTES.items():
            operation = each["paths"].get(path, {}).get(method.lower())
            if operation is None or path in paths:
                continue
            paths[path] = {method.lower(): _theirs(path, operation)}
            _collect(paths[path], available, schemas)
    info = {"title": "Segue", "version": metadata.version("segue")}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _own(path: str) -> Document:
    kind = "text/plain" if path == "/metrics" else "application/json"
    responses: Document = {"200": _answer(_SUMMARIES[path], kind)}
    if path == "/ready":
        responses["503"] = _answer("What is missing", kind)
    return {"summary": _SUMMARIES[path], "operationId": path.strip("/").replace("/", "_"), "responses": responses}


def _one_model() -> Document:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    responses = {"200": _answer("The model", "application/json"), "404": _refusal(404, MODEL_PREFIX)}
    return {"summary": "One model", "operationId": "v1_model", "parameters": [name], "responses": responses}


def _theirs(path: str, operation: Mapping[str, Any]) -> Document:
    answers = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    refusals = {str(status): _refusal(status, path) for status in _REFUSALS}
    return {**operation, "responses": {**answers, **refusals}}


def _answer(description: str, kind: str) -> Document:
    return {"description": description, "content": {kind: {}}}


def _refusal(status: int, path: str) -> Document:
    name = "AnthropicError" if is_anthropic(path) and status not in _ALWAYS_OPENAI else "Error"
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": _REFUSALS[status], "content": {"application/json": {"schema": schema}}}


def _collect(part: Any, available: Mapping[str, Any], into: Document) -> None:
    """Adds the schemas that ``part`` refers to, and those that they refer to."""
    waiting = [part]
    while waiting:
        for name in _references(waiting.pop()):
            if name in available and name not in into:
                into[name] = available[name]
                waiting.append(available[name])


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str):
            yield reference.rpartition("/")[2]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def encoded(of_models: Iterable[Document]) -> bytes:
    """``document`` as it is served."""
    return json.dumps(document(of_models)).encode()
