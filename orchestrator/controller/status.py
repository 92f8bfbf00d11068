"""The controller's view as ``segue.v1.ClusterStatus``."""

from __future__ import annotations

from orchestrator.core.readiness import SlotReport, cluster_ready, reports
from orchestrator.core.slots import Kind, Observed, slots_of
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.proto import cluster_pb2 as pb


def cluster_status(
    spec: ClusterSpec, observed: Observed, *, ending: bool = False, pid: int = 0, address: str = ""
) -> pb.ClusterStatus:
    """``pid`` and ``address`` are the controller's own."""
    told = reports(slots_of(spec), observed, ending=ending)
    return pb.ClusterStatus(
        ready=not ending and cluster_ready(spec, told),
        name=spec.name,
        models=[_model(model, told) for model in spec.models],
        gateways=[_gateway(report) for report in told if report.slot.kind is Kind.GATEWAY],
        controller=pb.ControllerStatus(pid=pid, epoch=observed.epoch, address=address),
    )


def _model(model: ModelSpec, told: tuple[SlotReport, ...]) -> pb.ModelStatus:
    pools = [_pool(model, role, told) for role in model.pools]
    return pb.ModelStatus(name=model.name, source=model.source, pools=pools)


def _pool(model: ModelSpec, role: Role, told: tuple[SlotReport, ...]) -> pb.PoolStatus:
    own = [report for report in told if report.slot.model == model.name and report.slot.role is role]
    return pb.PoolStatus(role=role, replicas=model.pools[role].replicas, workers=[_worker(report) for report in own])


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
