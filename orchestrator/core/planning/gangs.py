"""A configuration's replicas as what is placed."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.planning.places import Gang
from orchestrator.core.slots import Kind, slots_of
from orchestrator.core.spec import ClusterSpec, Role


def gangs_on(spec: ClusterSpec, kinds: Mapping[tuple[str, Role], tuple[str, ...]]) -> tuple[Gang, ...]:
    """One for each worker slot of a pool that has ``kinds`` to run on, by model and role, best first.

    Its pools' counts and sizes have to be numbers.
    """
    pools = {(model.name, role): pool for model in spec.models for role, pool in model.pools.items()}
    found = []
    for slot in slots_of(spec):
        if slot.kind is Kind.WORKER and slot.role is not None and (slot.model, slot.role) in kinds:
            pool = pools[slot.model, slot.role]
            sizes = (pool.tensor_parallel, pool.pipeline_parallel, pool.share)
            found.append(Gang(slot.slot_id, slot.model, slot.role, kinds[slot.model, slot.role], *sizes))
    return tuple(found)
