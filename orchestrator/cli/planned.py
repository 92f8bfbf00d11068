"""What `segue up` makes of a configuration before anything of it starts: every count filled in, or a refusal."""

from __future__ import annotations

from orchestrator import config
from orchestrator.cli.progress import Progress
from orchestrator.core.errors import ConfigError, DoesNotFit, ModelSourceError
from orchestrator.core.planning.hosts import Topology, reachable
from orchestrator.core.planning.plan import ClusterPlan, plan
from orchestrator.core.spec import Backend, ClusterSpec
from orchestrator.planning import catalogue
from orchestrator.planning.asking import asked
from orchestrator.planning.live import LABEL_HINT, inventory_of, takes_any_gpu, unknown

STEP = "plan"


def planned(spec: ClusterSpec, topology: Topology, progress: Progress, where: str) -> ClusterSpec:
    """The configuration as it is to be started on these hosts; ``where`` is its file.

    Raises:
        DoesNotFit: a model can't be run on them, or not everywhere where it has to be.
        ConfigError: a count is left open, and what there is doesn't let it be planned.
    """
    if not spec.open and all(pool.backend is Backend.MOCK for model in spec.models for pool in model.pools.values()):
        return spec
    progress.running(STEP, "does it fit?")
    near = reachable(topology, spec)
    strangers = unknown(near, catalogue.builtin())
    if strangers and takes_any_gpu(spec) and not spec.open:
        progress.done(STEP, f"left out: GPUs of unknown kind on {', '.join(strangers)}")
        return spec
    try:
        models = asked(spec, lambda what: progress.running(STEP, what))
    except (ConfigError, ModelSourceError) as error:
        if spec.open:
            raise
        progress.done(STEP, f"left out, as it can't be read for planning: {error}")  # an engine may well know it
        return spec
    found = plan(spec, models, inventory_of(topology, spec))
    if found.reasons:
        if left_out := len(topology.hosts) - len(near.hosts):
            progress.say(f"segue: {_counted(left_out, 'node')} elsewhere can't be used while cluster.bind is loopback")
        if strangers:
            progress.say(f"segue: GPUs of unknown kind don't count, on {', '.join(strangers)}: {LABEL_HINT}")
        raise _refusal(found, progress, where)
    for miss in found.misses:
        progress.say(f"segue: predicted, and only told: {miss}")
    progress.done(STEP, _in_short(found))
    return config.closed(found.spec, where)


def _refusal(found: ClusterPlan, progress: Progress, where: str) -> DoesNotFit:
    progress.failed(STEP, "it does not fit")
    for reason in found.reasons:
        progress.say(f"  {reason}")
    more = f"{len(found.reasons)} reasons above" if len(found.reasons) > 1 else "the reason is above"
    return DoesNotFit(f"it does not fit on what there is: {more}", where=where, hint="`segue plan` shows all of it")


def _in_short(found: ClusterPlan) -> str:
    """'it fits: 3 replicas on 2 nodes'."""
    nodes = {node for placed in found.placement.placed for node, _ in placed.stages}
    return f"it fits: {_counted(len(found.gangs), 'replica')} on {_counted(len(nodes), 'node')}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
