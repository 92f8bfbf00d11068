"""A model's ``routing`` section: a policy, its parameters, and where prompts are computed."""

from __future__ import annotations

from typing import Any

from orchestrator.config.cursor import Cursor, closest
from orchestrator.core import policies
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import PrefillPlace, RoutingSpec


def routing(cursor: Cursor, *, disaggregated: bool) -> RoutingSpec:
    """How the model's workers are chosen; ConfigError at the place that is wrong."""
    fields = cursor.fields("policy", "parameters", "prefill")
    values: dict[str, Any] = {}
    if "policy" in fields:
        values["policy"] = _policy(fields["policy"])
    if "parameters" in fields:
        values["parameters"] = {name: entry.value for name, entry in fields["parameters"].entries().items()}
    if "prefill" in fields:
        values["prefill"] = _prefill(fields["prefill"], disaggregated)
    spec = RoutingSpec(**values)
    try:
        policies.build(spec.policy, spec.parameters)
    except ConfigError as error:
        place = cursor.find(*error.where.split("."))
        name = error.where.rpartition(".")[2]
        meant = closest(name, [known for known in policies.parameters(policies.POLICIES[spec.policy]) if known != name])
        raise place.error(error.what, meant) from None
    return spec


def _policy(cursor: Cursor) -> str:
    if cursor.value not in policies.POLICIES:
        raise cursor.wrong(", ".join(policies.POLICIES), closest(cursor.value, policies.POLICIES))
    return str(cursor.value)


def _prefill(cursor: Cursor, disaggregated: bool) -> PrefillPlace:
    place = cursor.choice(PrefillPlace)
    if place is not PrefillPlace.AUTO and not disaggregated:
        raise cursor.wrong("auto", "the model has no prefill pool")
    return place
