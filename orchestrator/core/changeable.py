"""What of a specification can be changed while its cluster runs."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.differences import differences
from orchestrator.core.slots import slots_of
from orchestrator.core.spec import ClusterSpec


def taken_over(old: ClusterSpec, new: ClusterSpec) -> ClusterSpec:
    """The new specification, with what only a start says.

    Raises:
        ConfigError: it differs in what can't be changed while the cluster runs.
    """
    new = replace(new, gateway=replace(new.gateway, record=old.gateway.record))
    fixed = [
        each
        for each in differences(replace(old, models=()), replace(new, models=()))
        if each.where == "controller.listen" or not each.where.startswith("controller.")
    ]
    if old.name != new.name:
        raise ConfigError(f"cluster.name is {old.name} in what runs, and {new.name} here", where="cluster.name")
    if fixed:
        told = ", ".join(f"{each.where} ({each.was} -> {each.now})" for each in fixed)
        hint = "segue down and segue up start it anew"
        raise ConfigError(f"can't be changed while the cluster runs: {told}", where=fixed[0].where, hint=hint)
    before = {model.name: model for model in old.models}
    for model in new.models:
        if model.name in before and before[model.name].source != model.source:
            what = f"{model.name} can't become another model while it is served: {before[model.name].source} -> "
            hint = "add the other one under a name of its own, and take this one out once nobody asks for it"
            raise ConfigError(what + model.source, where=f"models: {model.name}: source", hint=hint)
    _require_own_slots(old, new)
    return new


def _require_own_slots(old: ClusterSpec, new: ClusterSpec) -> None:
    """Ids leave out what file names can't hold, so that models may change places with each other."""
    was = {slot.slot_id: slot.model for slot in slots_of(old)}
    for slot in slots_of(new):
        former = was.get(slot.slot_id, slot.model)
        if former != slot.model:
            what = f"{slot.slot_id} is a replica of {former}, and would be one of {slot.model}"
            hint = "keep both models in their order, or give one a name with other letters"
            raise ConfigError(what, where=f"models: {slot.model}: name", hint=hint)
