"""What happened at a worker last, kept until enough is known to learn from it (see ``learning``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Timing:
    """``batch_*``: prompts that ended in the newest step, not learned from yet; ``stepped_at``: its end."""

    batch_tokens: int = 0
    batch_began: float = 0.0
    batch_ended: float = 0.0
    stepped_at: float = 0.0
    running: int = 0
