"""One request on this worker, from its submit to its end, and the spans that tell of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.core.spec import Role
from orchestrator.telemetry import tracing

if TYPE_CHECKING:
    from workers.link import Link
    from workers.wire import Output

# vLLM's EngineCoreEventType, by value: this file is read by processes that have no vLLM.
_QUEUED, _SCHEDULED = 1, 2


@dataclass(slots=True)
class Work:
    """A live request. Times are wall-clock seconds; counts are tokens."""

    wire_id: str
    link: Link
    collects: bool  # whether its KV comes from a prefill worker
    trace: Mapping[str, str]
    prompt_tokens: int
    submitted_at: float = field(default_factory=time.time)
    output_tokens: int = 0
    local_cached: int = 0
    external_cached: int = 0
    queued_at: float | None = None
    scheduled_at: float | None = None

    def note(self, output: Output) -> None:
        """Takes account of one output of the engine."""
        self.output_tokens += len(output.new_token_ids)
        if output.prefill_stats is not None:
            self.local_cached = output.prefill_stats.num_local_cached_tokens
            self.external_cached = output.prefill_stats.num_external_cached_tokens
        if output.events:
            offset = time.time() - time.monotonic()  # the engine's clock is this machine's monotonic one
            for event in output.events:
                if event.type == _QUEUED and self.queued_at is None:
                    self.queued_at = event.timestamp + offset
                elif event.type == _SCHEDULED and self.scheduled_at is None:
                    self.scheduled_at = event.timestamp + offset

    def end(self, role: Role, outcome: str) -> None:
        """Records the request's spans. ``outcome``: the engine's finish reason, or why it never came to one."""
        name = "segue.worker.prefill" if role is Role.PREFILL else "segue.worker.decode"
        headers = tracing.record(
            name,
            self.submitted_at,
            time.time(),
            parent=self.trace or None,
            wire_id=self.wire_id,
            outcome=outcome,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.local_cached,
            transferred_tokens=self.external_cached,
        )
        if self.collects and self.queued_at is not None and self.scheduled_at is not None:
            tracing.record(
                "segue.kv_transfer",
                self.queued_at,
                self.scheduled_at,
                parent=headers or self.trace or None,
                wire_id=self.wire_id,
                transferred_tokens=self.external_cached,
            )
