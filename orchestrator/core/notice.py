"""A cluster's state in a few lines, for people who have kubectl and nothing else.

Each line ends with when it began to say so. A line that was there before, also from a controller before this one, keeps
its time.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.announcing import cut
from orchestrator.core.readiness import SlotReport
from orchestrator.core.scene import Pool, Scene
from orchestrator.core.types import WorkerState

_SINCE = ", since "
_NAMED = 3  # workers of a pool that a line tells of one by one
_LINE_BYTES = 2000


def notice(scene: Scene, former: Mapping[str, str], now: str, *, controller: str = "") -> dict[str, str]:
    """By key what it says. ``former``: the same as it was written last; ``now``: the time, as it is to be shown.

    ``controller``: where the controller listens.
    """
    pools = [f"{pool.model} {pool.role}: {_pool(pool)}" for pool in scene.pools]
    said = {
        "state": [_state(scene)],
        "pools": pools,
        "upgrade": [_upgrade(scene)] if scene.phase else [],
        "controller": [f"{controller or 'starting'}, the cluster's number {scene.term}"],
    }
    return {key: _dated(lines, former.get(key, ""), now) for key, lines in said.items() if lines}


def _dated(lines: list[str], former: str, now: str) -> str:
    since = dict(line.rsplit(_SINCE, 1) for line in former.splitlines() if _SINCE in line)
    # Without a blank at a line's end and with a last line that ends: else YAML shows it all in one line.
    plain = [cut(" ".join(line.split()), _LINE_BYTES) for line in lines]
    dated = [f"{line}{_SINCE}{since.get(line, now)}" for line in plain]
    return "\n".join(dated) + ("\n" if len(dated) > 1 else "")


def _state(scene: Scene) -> str:
    if scene.ending:
        return "draining"
    if scene.ready:
        return "ready"
    missing = [f"{pool.model} {pool.role}" for pool in scene.pools if pool.wanted and not pool.ready]
    return f"not ready: no worker of {', '.join(missing)}" if missing else "not ready: no gateway"


def _pool(pool: Pool) -> str:
    wanted = f"{pool.ready}/{pool.wanted} ready" if pool.wanted else f"{pool.ready} ready, none wanted"
    others = [worker for worker in pool.workers if worker.snapshot.state is not WorkerState.READY]
    told = [f"{worker.slot.slot_id} {_worker(worker)}" for worker in others[:_NAMED]]
    if len(others) > _NAMED:
        told.append(f"{len(others) - _NAMED} more")
    return "; ".join([wanted, *told])


def _worker(worker: SlotReport) -> str:
    word = worker.snapshot
    return ": ".join([word.state.value, *(part for part in (word.stage, word.detail) if part)])


def _upgrade(scene: Scene) -> str:
    counts = f"{scene.phase}: {scene.done} of {scene.total} workers"
    return f"{counts}; {scene.detail}" if scene.detail else counts
