"""The policies, by the name that a configuration gives; a new one is a file here and a line in ``POLICIES``."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.errors import ConfigError
from orchestrator.core.policies.adapter_aware import AdapterAware
from orchestrator.core.policies.base import Ask, Policy, allowed, fits, parameters
from orchestrator.core.policies.cost import Cost
from orchestrator.core.policies.least_load import LeastLoad
from orchestrator.core.policies.power_of_two import PowerOfTwo
from orchestrator.core.policies.prefix_and_load import PrefixAndLoad
from orchestrator.core.policies.prefix_aware import PrefixAware
from orchestrator.core.policies.round_robin import RoundRobin
from orchestrator.core.policies.session_affinity import SessionAffinity

__all__ = ["POLICIES", "Ask", "Policy", "allowed", "build", "fits", "parameters", "unknown"]

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
        ConfigError: no such policy, parameter or value.
    """
    kind = POLICIES.get(name)
    if kind is None:
        raise ConfigError(f"found the policy {name!r}, allowed: {', '.join(POLICIES)}")
    known = parameters(kind)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown(name, key))
        if not fits(known[key], value):
            raise ConfigError(f"found {value!r}, allowed: {allowed(known[key])}", where=f"{name}.{key}")
    return kind(kind.Options(**values))


def unknown(name: str, key: str) -> str:
    """What to say of a parameter that a policy doesn't have."""
    known = parameters(POLICIES[name])
    return f"unknown parameter {key!r}, " + (f"allowed: {', '.join(known)}" if known else f"{name} has none")
