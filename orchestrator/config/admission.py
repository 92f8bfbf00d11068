"""The section ``gateway.admission``: what may wait, and each tenant's share and bounds."""

from __future__ import annotations

from typing import Any

from orchestrator.config.cursor import Cursor
from orchestrator.core.spec import AdmissionSpec, TenantSpec
from orchestrator.core.tenancy import NAMES, is_name

LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000
_BOUNDS = ("max_queued_requests", "max_queued_tokens")


def admission(cursor: Cursor) -> AdmissionSpec:
    """The section; what is not written has the default."""
    fields = cursor.fields(*_BOUNDS, "default", "tenants", "isolate_caches")
    values: dict[str, Any] = {name: fields[name].integer(0) for name in _BOUNDS if name in fields}
    if "default" in fields:
        values["default"] = _tenant(fields["default"])
    if "tenants" in fields:
        values["tenants"] = _tenants(fields["tenants"])
    if "isolate_caches" in fields:
        values["isolate_caches"] = _truth(fields["isolate_caches"])
    return AdmissionSpec(**values)


def _tenants(cursor: Cursor) -> dict[str, TenantSpec]:
    entries = cursor.entries()
    for name, entry in entries.items():
        if not is_name(name):
            raise entry.error(f"found a tenant of {len(name)} characters, allowed: {NAMES}, no space at either end")
    return {name: _tenant(entry) for name, entry in entries.items()}


def _tenant(cursor: Cursor) -> TenantSpec:
    fields = cursor.fields("weight", *_BOUNDS)
    values: dict[str, Any] = {
        name: fields[name].integer(0) for name in _BOUNDS if name in fields and fields[name].value is not None
    }
    if "weight" in fields:
        values["weight"] = _weight(fields["weight"])
    return TenantSpec(**values)


def _weight(cursor: Cursor) -> float:
    value = cursor.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise cursor.wrong(f"a number from {LEAST_WEIGHT} to {MOST_WEIGHT}")
    return float(value)


def _truth(cursor: Cursor) -> bool:
    if not isinstance(cursor.value, bool):
        raise cursor.wrong("true or false")
    return cursor.value
