"""What events teach about a worker's speed: the times between them, less what was spent in a queue.

Each feeds the worker's cost model.
"""

from __future__ import annotations

from orchestrator.core.fleet import WorkerView
from orchestrator.core.session import Session

SAME_STEP = 1e-4  # seconds within which two prompts that end were computed by one step
LONGEST_STEP = 5.0  # seconds; more is a pause and not a step


def prefilled(view: WorkerView, session: Session, cached_tokens: int, now: float) -> None:
    """A prompt has been computed. One engine computes them in turn: each began when the one before it ended."""
    tokens = session.prompt_tokens - cached_tokens
    if now - view.batch_ended <= SAME_STEP:
        view.batch_tokens += tokens
        return
    if view.batch_tokens > 0:
        view.cost.saw_prefill(view.batch_tokens, view.batch_ended - view.batch_began)
    view.batch_began = max(view.batch_ended, now if session.placed_at is None else session.placed_at)
    view.batch_ended, view.batch_tokens = now, tokens


def stepped(view: WorkerView, now: float) -> None:
    """An engine step has ended. With prompts under way it is no decode step."""
    running = view.running
    seconds = now - view.stepped_at
    if view.prefill_tokens == 0 and 0 < running == view.stepped_running and 0.0 < seconds < LONGEST_STEP:
        view.cost.saw_step(running, seconds)
    view.stepped_at, view.stepped_running = now, running if view.prefill_tokens == 0 else 0


def silent(view: WorkerView) -> None:
    """It spoke, but not of a step with this gateway's requests in it: the next one begins nobody knows when."""
    view.stepped_running = 0


def transferred(view: WorkerView, session: Session, now: float) -> None:
    """The first token came after a hand-over: less the step that made it, that is what the KV took."""
    if session.prefilled_at is None or session.transferred_tokens <= 0:
        return
    step = view.cost.step_seconds(max(1, view.running))
    view.cost.saw_transfer(session.transferred_tokens, max(1e-6, now - session.prefilled_at - step))
