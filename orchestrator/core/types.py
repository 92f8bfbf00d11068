"""Nouns shared by every room. All frozen; none knows how it is stored or sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from orchestrator.core.decision import Wait
from orchestrator.core.spec import HANG_SECONDS, Backend, Bind, Device, Role
from orchestrator.core.values import dataclass, mypyc_attr


class WorkerState(StrEnum):
    """A replica's life. STARTING and DRAINING take no new requests; DEAD and FAILED are about to be replaced."""

    PENDING = "pending"  # its placement group is not there yet
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"  # did not come up; waits for its backoff
    DEAD = "dead"  # came up and was lost


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class Load:
    """An engine's own account at the end of a step."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0

    @property
    def kv_usage(self) -> float:
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0


# A request's extra argument: the tokens of its output that its client has already.
SENT_TOKENS = "segue_sent_token_ids"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine turned out to be once it was up. ``kv_block_bytes`` is over all layers and all shards, K and V.

    ``kv_events``: it tells what enters and leaves its prefix cache. ``weight_bytes``: over all shards; 0 if unknown.
    ``restores``: a request that goes on here (``SENT_TOKENS``) keeps its grammar, its penalties and its seed's state.
    """

    block_size: int
    kv_blocks_total: int
    kv_block_bytes: int
    max_model_len: int
    max_num_seqs: int
    tasks: tuple[str, ...] = ("generate",)
    kv_events: bool = False
    weight_bytes: int = 0
    device: Device = Device.CPU
    restores: bool = False
    kv_format: str = ""  # equal for engines that can hand KV over to each other


@dataclass(frozen=True, slots=True)
class WorkerAssignment:
    """One replica's orders, complete: an actor needs nothing else to come up."""

    cluster: str
    worker_id: str
    epoch: int
    model: str
    source: str
    role: Role
    device: Device
    backend: Backend
    bind: Bind
    tensor_parallel: int
    pipeline_parallel: int
    engine: Mapping[str, Any] = field(default_factory=dict)  # effective vLLM arguments, already merged
    kv_transfer: bool = False  # whether this replica hands KV over to, or takes it from, another
    otlp_endpoint: str | None = None
    log_level: str = "info"
    log_dir: str = ""
    share: float = 1.0  # of its GPU that it may take; below 1 only with one device
    hosts: tuple[str, ...] = ()  # Ray's node id for each pipeline stage; empty where Ray is to choose
    gpu: tuple[str, ...] = ()  # where Ray chooses: what its node's GPUs may be called; anything, if there is nothing
    selector: Mapping[str, str] = field(default_factory=dict)  # where Ray chooses: labels of its nodes, as Ray selects
    version: str = ""  # of what it is made of: ``controller.assignments.version_of``
    hang_seconds: float = HANG_SECONDS  # as in ``ControllerSpec``


@dataclass(frozen=True, slots=True)
class GatewayAssignment:
    """One gateway process's orders."""

    cluster: str
    gateway_id: str
    epoch: int
    controller: str  # host:port of the fleet watch
    log_dir: str = ""
    record: str = ""  # the file for all that its brain sees and decides; none if empty
    settings: str = ""  # a short hash of what it takes from its first specification and keeps
    version: str = ""  # of what it is made of: ``controller.assignments.version_of``


@dataclass(frozen=True, slots=True)
class ActorSnapshot:
    """What a worker or gateway actor says of itself. ``stage`` is for people: what a long start is busy with."""

    state: WorkerState
    stage: str = ""
    detail: str = ""  # why it failed, if it did
    node: str = ""
    address: str = ""  # host:port of the worker session, or of a gateway's HTTP side
    grpc_address: str = ""  # gateways only
    actor_pid: int = 0
    engine_pid: int = 0
    facts: EngineFacts | None = None
    load: Load = Load()
    version: str = ""  # its order's
    ready_for: float = 0.0  # seconds since it was ready first, by its own clock; workers only
    serves: str = ""  # gateways: the name of the specification whose models it serves
    refuses: str = ""  # gateways: that of one that it could not take; ``detail`` says why


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as a gateway's router knows it."""

    worker_id: str
    model: str
    role: Role
    address: str
    epoch: int
    state: WorkerState = WorkerState.READY
    facts: EngineFacts | None = None


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class RequestReport:
    """What became of one sequence (a request with n > 1 has n of them).

    Times are seconds; None where it did not get so far.
    """

    request_id: str
    model: str
    outcome: str  # finished, cancelled, rejected or failed
    prefill_worker: str = ""  # empty where the decode worker did both halves
    decode_worker: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # that a prefix cache saved (the prefill worker's, where prefill ran apart)
    transferred_tokens: int = 0  # whose KV came over from the prefill worker
    kv_bytes: int = 0
    predicted_cached_tokens: int | None = None  # by the router; None where it could not know
    tenant: str = ""
    waited: Wait | None = None  # why it was not sent at once, as of the last time that it was its turn
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    transfer_seconds: float | None = None
    ttft_seconds: float | None = None
    total_seconds: float = 0.0
    attempts: int = 1
    detail: str = ""
