"""The controller's view as ``segue.v1.ClusterStatus``."""

from __future__ import annotations

from orchestrator.core.course import Progress
from orchestrator.core.readiness import SlotReport, cluster_ready, reports
from orchestrator.core.slots import Kind, Observed, slots_of
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.proto import cluster_pb2 as pb


def cluster_status(
    spec: ClusterSpec,
    observed: Observed,
    *,
    ending: bool = False,
    pid: int = 0,
    address: str = "",
    term: int = 0,
    began_ms: int = 0,
    rollout: Progress | None = None,
    expected: ClusterSpec | None = None,
) -> pb.ClusterStatus:
    """``pid``, ``address`` and ``term`` are the controller's own, ``began_ms`` its cluster's.

    ``expected``: what has to be there, if that is less.

    Workers that the specification lacks are told as long as they are there: gateways need them until they are gone.
    """
    slots = slots_of(spec)
    known = {slot.slot_id for slot in slots}
    beside = dict.fromkeys(actor.slot for actor in observed.actors if actor.slot.slot_id not in known)
    told = reports((*slots, *beside), observed, ending=ending)
    names = dict.fromkeys([*(model.name for model in spec.models), *(slot.model for slot in beside if slot.model)])
    models = {model.name: model for model in spec.models}
    return pb.ClusterStatus(
        ready=not ending and cluster_ready(expected or spec, told),
        name=spec.name,
        models=[_model(name, models.get(name), told) for name in names],
        gateways=[_gateway(report) for report in told if report.slot.kind is Kind.GATEWAY],
        controller=pb.ControllerStatus(pid=pid, epoch=observed.epoch, address=address, term=term, began_ms=began_ms),
        rollout=_rollout(rollout) if rollout is not None and rollout.phase else None,
    )


def _rollout(progress: Progress) -> pb.Rollout:
    return pb.Rollout(state=progress.phase, done=progress.done, total=progress.total, detail=progress.detail)


def _model(name: str, model: ModelSpec | None, told: tuple[SlotReport, ...]) -> pb.ModelStatus:
    own = [report for report in told if report.slot.model == name]
    there = dict.fromkeys([*(model.pools if model else ()), *(report.slot.role for report in own)])
    pools = [_pool(model, role, own) for role in there if role is not None]
    return pb.ModelStatus(name=name, source=model.source if model else "", pools=pools)


def _pool(model: ModelSpec | None, role: Role, told: list[SlotReport]) -> pb.PoolStatus:
    own = [report for report in told if report.slot.role is role]
    replicas = model.pools[role].replicas if model and role in model.pools else 0
    return pb.PoolStatus(role=role, replicas=replicas, workers=[_worker(report) for report in own])


def _worker(report: SlotReport) -> pb.WorkerStatus:
    word = report.snapshot
    return pb.WorkerStatus(
        id=report.slot.slot_id,
        node=word.node,
        state=word.state,
        stage=word.stage,
        detail=word.detail,
        address=word.address,
        epoch=report.epoch,
        actor_pid=word.actor_pid,
        engine_pid=word.engine_pid,
        running=word.load.running,
        waiting=word.load.waiting,
        kv_blocks_used=word.load.kv_blocks_used,
        kv_blocks_total=word.load.kv_blocks_total,
        restarts=report.restarts,
    )


def _gateway(report: SlotReport) -> pb.GatewayStatus:
    word = report.snapshot
    return pb.GatewayStatus(
        id=report.slot.slot_id,
        http=word.address,
        grpc=word.grpc_address,
        pid=word.actor_pid,
        state=word.state,
        detail=word.detail,
        stage=word.stage,
    )
