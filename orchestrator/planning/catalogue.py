"""``devices.yaml`` and what a user says of devices -> a Catalogue."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from orchestrator.config.cursor import Cursor, closest
from orchestrator.config.document import read
from orchestrator.core.planning.devices import Catalogue, DeviceKind, Precision
from orchestrator.core.spec import Device
from orchestrator.planning.this_cpu import this_cpu

__all__ = ["builtin", "described", "number", "this_cpu"]

GIB = 1 << 30
GB, TERA = 1e9, 1e12
# Keys that are numbers of a unit -> fields of DeviceKind and what the unit is.
NUMBERS = {
    "memory_gib": ("memory_bytes", GIB),
    "memory_gb_per_second": ("memory_bandwidth", GB),
    "link_gb_per_second": ("link_bandwidth", GB),
    "network_gb_per_second": ("network_bandwidth", GB),
    "usd_per_hour": ("usd_per_hour", 1.0),
    "watts": ("watts", 1.0),
}
FREE = ("usd_per_hour",)  # what may be 0
NEEDED = (*NUMBERS, "tflops")
KEYS = ("maker", "kind", "aliases", "link", "sources", *NEEDED)


@functools.cache
def builtin() -> Catalogue:
    """What ``devices.yaml`` has."""
    text = (resources.files("orchestrator.planning") / "devices.yaml").read_text(encoding="utf-8")
    return described(Cursor(read(text, "devices.yaml")), Catalogue(()))


def described(cursor: Cursor, known: Catalogue) -> Catalogue:
    """``known`` with what a mapping of names to descriptions adds to it and overrides in it.

    A name that is known, or an alias, overrides what it names and leaves the rest; any other needs all numbers.

    Raises:
        ConfigError: one line with file, line, key path, what was found and what is allowed.
    """
    kinds: dict[str, DeviceKind] = {}
    for name, entry in cursor.entries().items():
        kind = _overridden(entry, known.find(name)) if name in known else _new(name, entry, known)
        if kind.name in kinds:
            raise entry.error(f"found {kind.name} described a second time, allowed: once")
        kinds[kind.name] = kind
    return known.extended(kinds.values(), cursor.place())


def _overridden(cursor: Cursor, kind: DeviceKind) -> DeviceKind:
    values = _values(cursor)
    return dataclasses.replace(
        kind,
        **values
        | {"flops": {**kind.flops, **values.get("flops", {})}, "aliases": (*kind.aliases, *values.get("aliases", ()))},
    )


def _new(name: str, cursor: Cursor, known: Catalogue) -> DeviceKind:
    values = _values(cursor)
    missing = [key for key in NEEDED if key not in (cursor.value or {})]
    if missing:
        what = (
            f"found a device that the catalogue doesn't have, without {', '.join(missing)}, allowed: with all of them"
        )
        raise cursor.error(what, closest(name, [kind.name for kind in known]))
    if not values["flops"].keys() & {Precision.FP32, Precision.BF16, Precision.FP16}:
        raise cursor.child("tflops").wrong("float32, bfloat16 or float16 among them")
    return DeviceKind(name, **{"maker": "", "kind": Device.GPU, "link": "link"} | values)


def _values(cursor: Cursor) -> dict[str, Any]:
    """What an entry says, as arguments of DeviceKind."""
    fields = cursor.fields(*KEYS)
    values: dict[str, Any] = {}
    for key, (field, unit) in NUMBERS.items():
        if key in fields:
            values[field] = number(fields[key], zero=key in FREE) * unit
    if "memory_bytes" in values:
        values["memory_bytes"] = int(values["memory_bytes"])
    if "tflops" in fields:
        values["flops"] = _flops(fields["tflops"])
    if "kind" in fields:
        values["kind"] = fields["kind"].choice(Device)
    values |= {key: fields[key].text() for key in ("maker", "link") if key in fields}
    if "aliases" in fields:
        values["aliases"] = tuple(alias.text() for alias in fields["aliases"].items())
    if "sources" in fields:
        for source in fields["sources"].items():
            source.text()
    return values


def _flops(cursor: Cursor) -> Mapping[Precision, float]:
    entries = cursor.fields(*(precision.value for precision in Precision))
    return {Precision(name): number(entry) * TERA for name, entry in entries.items()}


def number(cursor: Cursor, *, zero: bool = False) -> float:
    """A finite number above 0, or ``zero`` too; ConfigError otherwise."""
    value = cursor.value
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < 0 or (value == 0 and not zero):
        raise cursor.wrong("a number, 0 or more" if zero else "a number above 0")
    return float(value)
