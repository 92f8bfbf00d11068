"""The policies, by the name that a configuration gives; a new one is a file here and a line in ``POLICIES``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from orchestrator.core.errors import ConfigError
from orchestrator.core.policies.adapter_aware import AdapterAware
from orchestrator.core.policies.base import Ask, Policy, parameters
from orchestrator.core.policies.cost import Cost
from orchestrator.core.policies.least_load import LeastLoad
from orchestrator.core.policies.power_of_two import PowerOfTwo
from orchestrator.core.policies.prefix_and_load import PrefixAndLoad
from orchestrator.core.policies.prefix_aware import PrefixAware
from orchestrator.core.policies.round_robin import RoundRobin
from orchestrator.core.policies.session_affinity import SessionAffinity

__all__ = ["POLICIES", "Ask", "Policy", "build", "parameters"]

POLICIES: Mapping[str, type[Policy]] = {
    "cost": Cost,
    "prefix_and_load": PrefixAndLoad,
    "prefix_aware": PrefixAware,
    "session_affinity": SessionAffinity,
    "adapter_aware": AdapterAware,
    "least_load": LeastLoad,
    "power_of_two": PowerOfTwo,
    "round_robin": RoundRobin,
}


def build(name: str, values: Mapping[str, float]) -> Policy:
    """A new policy.

    Raises:
        ConfigError: no such policy, parameter or value; ``where`` is the key path below a model's ``routing``.
    """
    kind = POLICIES.get(name)
    if kind is None:
        raise ConfigError(f"found {name!r}, allowed: {', '.join(sorted(POLICIES))}", where="policy")
    known = parameters(kind)
    for key, value in values.items():
        if key not in known:
            allowed = f"allowed: {', '.join(known)}" if known else f"{name} has no parameters"
            raise ConfigError(f"unknown parameter {key!r}, {allowed}", where=f"parameters.{key}")
        _check(f"parameters.{key}", known[key], value)
    return kind(kind.Options(**values))


def _check(where: str, entry: Field[Any], value: object) -> None:
    least, most = entry.metadata["least"], entry.metadata["most"]
    whole = isinstance(entry.default, int)
    plain = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type]
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"found {value!r}, allowed: {kind} from {least:g} to {most:g}", where=where)
