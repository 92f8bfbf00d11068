"""What events teach about a worker's speed: the times between them, less what was spent in a queue."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.fleet import WorkerView
from orchestrator.core.session import Session

SAME_STEP = 1e-4  # seconds within which two prompts that end were computed by one step
LONGEST_STEP = 5.0  # seconds; more is a pause and not a step


@dataclass(slots=True)
class _Pace:
    """``batch_*``: prompts that ended in the newest step, not learned from yet; ``stepped_at``: its end."""

    batch_tokens: int = 0
    batch_began: float = 0.0
    batch_ended: float = 0.0
    stepped_at: float = 0.0
    running: int = 0


class Learning:
    """Feeds each worker's cost model."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}

    def forget(self, worker_id: str) -> None:
        self._paces.pop(worker_id, None)

    def prefilled(self, view: WorkerView, session: Session, cached_tokens: int, now: float) -> None:
        """A prompt has been computed. One engine computes them in turn: each began when the one before it ended."""
        pace = self._pace(view)
        tokens = session.prompt_tokens - cached_tokens
        if now - pace.batch_ended <= SAME_STEP:
            pace.batch_tokens += tokens
            return
        if pace.batch_tokens > 0:
            view.cost.saw_prefill(pace.batch_tokens, pace.batch_ended - pace.batch_began)
        pace.batch_began = max(pace.batch_ended, now if session.placed_at is None else session.placed_at)
        pace.batch_ended, pace.batch_tokens = now, tokens

    def stepped(self, view: WorkerView, now: float) -> None:
        """An engine step has ended. With prompts under way it is no decode step."""
        pace = self._pace(view)
        running = view.load.running
        seconds = now - pace.stepped_at
        if view.prefill_tokens == 0 and 0 < running == pace.running and 0.0 < seconds < LONGEST_STEP:
            view.cost.saw_step(running, seconds)
        pace.stepped_at, pace.running = now, running if view.prefill_tokens == 0 else 0

    def silent(self, view: WorkerView) -> None:
        """It spoke, but not of a step with this gateway's requests in it: the next one begins nobody knows when."""
        if pace := self._paces.get(view.info.worker_id):
            pace.running = 0

    def transferred(self, view: WorkerView, session: Session, now: float) -> None:
        """The first token came after a hand-over: less the step that made it, that is what the KV took."""
        if session.prefilled_at is None or session.transferred_tokens <= 0:
            return
        step = view.cost.step_seconds(max(1, view.load.running))
        view.cost.saw_transfer(session.transferred_tokens, max(1e-6, now - session.prefilled_at - step))

    def _pace(self, view: WorkerView) -> _Pace:
        pace = self._paces.get(view.info.worker_id)
        if pace is None:
            pace = self._paces[view.info.worker_id] = _Pace()
        return pace
