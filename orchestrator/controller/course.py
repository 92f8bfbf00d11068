"""From specifications to what a ``Course`` goes by: their digests, and the versions of the orders that they make."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.config import digest, effective_engine_args, loads
from orchestrator.controller.assignments import Assigner
from orchestrator.controller.ports import Memory
from orchestrator.core.course import Aim, Course
from orchestrator.core.errors import SegueError
from orchestrator.core.rollout import Goal, PoolKey, pool_of
from orchestrator.core.slots import Kind, slots_of
from orchestrator.core.spec import ClusterSpec


def aim(assigner: Assigner, *, strict: bool = False, makes_room: bool = False) -> Aim:
    """At the assigner's specification. ``strict``: orders that can't be written are an error; else their pools are of
    any version."""
    slots = slots_of(assigner.spec)
    versions: dict[PoolKey, str] = {}
    for slot in slots:
        if slot.kind is Kind.WORKER and pool_of(slot) not in versions:
            try:
                versions[pool_of(slot)] = assigner.order(slot, 0).version
            except SegueError:
                if strict:
                    raise
    goal = Goal(slots, versions, assigner.spec.controller.rollout, makes_room=makes_room)
    return Aim(assigner.spec, digest(assigner.spec), goal)


def resumed(assigner: Assigner, memory: Memory) -> Course:
    """As another controller left it."""
    previous = aim(replace(assigner, spec=loads(memory.previous_json))) if memory.previous_json else None
    return Course(aim(assigner, makes_room=memory.makes_room), previous, back=memory.back)


def outdated_pools(old: ClusterSpec, new: ClusterSpec) -> tuple[PoolKey, ...]:
    """Pools of both whose workers would be made of something else. Raises what is wrong with the new one's orders."""
    was, now = (Assigner(spec, "", effective_engine_args) for spec in (old, new))
    before, after = aim(was).goal.versions, aim(now, strict=True).goal.versions
    return tuple(key for key, version in after.items() if before.get(key, version) != version)
