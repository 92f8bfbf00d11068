"""A model's ``routing`` section: a policy, its parameters, and where prompts are computed."""

from __future__ import annotations

from typing import Any

from orchestrator.config.cursor import Cursor, closest
from orchestrator.core import policies
from orchestrator.core.spec import PrefillPlace, RoutingSpec


def routing(cursor: Cursor, *, disaggregated: bool) -> RoutingSpec:
    """How the model's workers are chosen; ConfigError at the place that is wrong."""
    fields = cursor.fields("policy", "parameters", "prefill")
    values: dict[str, Any] = {}
    if "policy" in fields:
        values["policy"] = _policy(fields["policy"])
    if "parameters" in fields:
        values["parameters"] = _parameters(fields["parameters"], values.get("policy", RoutingSpec().policy))
    if "prefill" in fields:
        values["prefill"] = _prefill(fields["prefill"], disaggregated)
    return RoutingSpec(**values)


def _policy(cursor: Cursor) -> str:
    if not isinstance(cursor.value, str) or cursor.value not in policies.POLICIES:
        raise cursor.wrong(", ".join(policies.POLICIES), closest(cursor.value, policies.POLICIES))
    return cursor.value


def _parameters(cursor: Cursor, policy: str) -> dict[str, float]:
    known, values = policies.parameters(policies.POLICIES[policy]), {}
    for name, entry in cursor.entries().items():
        if name not in known:
            raise entry.error(policies.unknown(policy, name), closest(name, known))
        if not policies.fits(known[name], entry.value):
            raise entry.wrong(policies.allowed(known[name]))
        values[name] = entry.value
    return values


def _prefill(cursor: Cursor, disaggregated: bool) -> PrefillPlace:
    place = cursor.choice(PrefillPlace)
    if place is not PrefillPlace.AUTO and not disaggregated:
        raise cursor.wrong("auto", "the model has no prefill pool")
    return place
