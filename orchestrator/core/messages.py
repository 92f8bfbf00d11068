"""What goes into the brain (events) and what comes out (commands).

A *wire id* names one attempt at one half of a request on one worker, so whatever an older attempt still says is known
to be stale. A *transfer* (what a decode worker needs to collect a prefill's KV) never enters the brain: the driver
keeps it under the prefill's wire id.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from orchestrator.core.decision import Decision
from orchestrator.core.errors import SegueError
from orchestrator.core.spec import PrefillPlace, Role
from orchestrator.core.types import Load, RequestReport, WorkerInfo
from orchestrator.core.values import dataclass, mypyc_attr


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A session with a worker is open, and it takes requests."""

    worker: WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """The worker finishes what it has and takes nothing new."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Sent:
    """How many tokens of a request's output have come so far, from all its workers: what the client has."""

    request_id: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """The session broke, or the worker left the fleet: whatever ran there is lost.

    ``sent`` has the requests that it was in the middle of.
    """

    worker_id: str
    reason: str
    sent: tuple[Sent, ...] = ()


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class LoadReported:
    """A step frame brought the worker's own account."""

    worker_id: str
    load: Load
    own: int | None = None  # requests in ``load`` that this gateway sent; None if the worker did not say
    stepped: bool = False  # the frame had outputs for this gateway: an engine step has ended


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class CacheChanged:
    """A worker's prefix cache changed, in this order: cleared, removed, stored (block hashes, see ``blocks``)."""

    worker_id: str
    stored: Sequence[int] = ()
    removed: Sequence[int] = ()
    cleared: bool = False


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class Arrived:
    """A client's request. ``local_only``: its prompt has to be computed by the engine that decodes.

    ``blocks`` are the hashes of its full blocks (see ``blocks``), empty where nobody could make them; ``output_limit``
    the most tokens that it may get, 0 if it named none. A lower ``priority`` goes first within its tenant.
    ``resumable``: prompt and sent output as one longer prompt give the same tokens as if nothing had been lost.
    """

    request_id: str
    model: str
    prompt_tokens: int
    local_only: bool = False
    deadline: float | None = None
    blocks: Sequence[int] = ()
    tenant: str = ""
    priority: int = 0
    affinity: str = ""  # requests with the same one belong to one conversation
    adapter: str = ""
    output_limit: int = 0
    resumable: bool = False


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class PrefillEnded:
    """The prefill half has ended; ``collectable`` if its KV waits to be collected.

    ``cached_tokens`` are those that its prefix cache saved; None if it did not say.
    """

    wire_id: str
    collectable: bool
    detail: str = ""
    cached_tokens: int | None = None


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class FirstToken:
    """The decode half's first output; prompt tokens that a prefix cache saved, and those whose KV was moved."""

    wire_id: str
    cached_tokens: int
    transferred_tokens: int


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class DecodeEnded:
    """The decode half has ended: well, or (``failed``) with an error of the engine."""

    wire_id: str
    output_tokens: int
    failed: bool = False
    detail: str = ""


class Refusal(StrEnum):
    """Why a worker did not take a request."""

    DRAINING = "draining"
    BUSY = "busy"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker did not take a request: it is the authority, the view was stale."""

    wire_id: str
    refusal: Refusal
    detail: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client went away, or the front end needs no more (a stop string)."""

    request_id: str
    output_tokens: int = 0
    complete: bool = False  # the front end has all it wanted: this is a good end


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a routing policy's."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class ModelRouted:
    """From now on a model is routed so, as its configuration changed; ``target_seconds`` to the first token, if any."""

    model: str
    policy: str
    parameters: tuple[Parameter, ...]
    prefill: PrefillPlace
    target_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Knocked:
    """A client is at the door, and its request is not read yet: answered by TurnedAway where there is no use in that.

    ``deadline`` as in ``Arrived``.
    """

    request_id: str
    model: str
    tenant: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: deadlines are looked at."""


Seldom = WorkerUp | WorkerDraining | WorkerDown | Refused | Cancelled | ModelRouted | Knocked | Tick
Event = LoadReported | CacheChanged | Arrived | PrefillEnded | FirstToken | DecodeEnded | Seldom


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class StartPrefill:
    request_id: str
    wire_id: str
    worker_id: str
    decision: Decision


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class StartDecode:
    """``collect`` is the wire id of the prefill whose KV is to be pulled; None to compute the prompt in place."""

    request_id: str
    wire_id: str
    worker_id: str
    collect: str | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class Abort:
    wire_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Have ``worker_id`` (a decode worker) tell the prefill side to free the blocks that ``prefill_wire_id`` left."""

    prefill_wire_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The prefill's transfer is of no more use: nobody is left to release it, its lease will end it."""

    prefill_wire_id: str


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class End:
    """The request's one outcome. ``error`` is for the client; None where the client already has its end."""

    report: RequestReport
    error: SegueError | None = None


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Whoever knocked would be refused, however little it asked for."""

    request_id: str
    error: SegueError


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong that no single request shows; told once, and once more when it is ``over``."""

    kind: str  # a metric's label: prefix_prediction ...
    model: str
    text: str
    over: bool = False


@dataclass(frozen=True, slots=True)
class Sick:
    """A worker was taken out of its pool, and why; or (``over``) it is back."""

    worker_id: str
    model: str
    role: Role
    why: str
    over: bool = False


Command = StartPrefill | StartDecode | Abort | Release | Forget | End | TurnedAway | Alert | Sick
