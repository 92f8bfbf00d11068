"""What a request carries from the edge (HTTP or gRPC) down to the seam, past code that is not ours.

vLLM's front end calls the seam in the task that the edge started, so a context variable reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from orchestrator.core.errors import SegueError
from orchestrator.core.types import RequestReport


@dataclass(slots=True)
class RequestContext:
    """One client request. ``reports`` fills up as its sequences end (n of them for n > 1).

    ``taken``: vLLM's endpoint has it, in its own types; ``placed``: some of it is at a worker, or was; ``error``: what
    some of it ended with, if it did so badly.
    """

    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)  # W3C headers of the span that the edge opened
    tenant: str = ""
    priority: int | None = None  # over what the request itself says
    affinity: str = ""  # the conversation that it belongs to
    deadline: float | None = None  # on time.monotonic's clock
    reports: list[RequestReport] = field(default_factory=list)
    taken: bool = False
    placed: bool = False
    error: SegueError | None = None


CURRENT: ContextVar[RequestContext | None] = ContextVar("segue_request", default=None)
