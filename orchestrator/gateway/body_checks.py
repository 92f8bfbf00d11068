"""Checks of bodies by vLLM's own types, in a time that does not grow with what is wrong with them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic_core import SchemaValidator

_LISTS = frozenset({"list", "tuple", "set", "frozenset", "dict"})


def one_fault_a_list(app: FastAPI) -> None:
    """Has each list in a body read up to its first wrong item only.

    Pydantic tells all faults of all items, each in all the ways in which an item can be meant: 200 KB of wrong
    messages keep a gateway from everything else for ten seconds.
    """
    for route in app.routes:
        for field in route.dependant.body_params if isinstance(route, APIRoute) else ():
            adapter = field._type_adapter
            _mark(adapter.core_schema, set())
            adapter.validator = SchemaValidator(adapter.core_schema)


def _mark(schema: Any, seen: set[int]) -> None:
    """Everywhere in a schema, which may be shared with other routes."""
    if not isinstance(schema, dict | list | tuple) or id(schema) in seen:
        return
    seen.add(id(schema))
    if isinstance(schema, dict):
        if isinstance(kind := schema.get("type"), str) and kind in _LISTS:  # a model may have a field of that name
            schema["fail_fast"] = True
        schema = list(schema.values())
    for each in schema:
        _mark(each, seen)
