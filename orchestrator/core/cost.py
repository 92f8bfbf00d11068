"""What prefill, transfer and decode take on a worker: first by a roofline, then by what it really took."""

from __future__ import annotations

from orchestrator.core.types import EngineFacts


class CostModel:
    """One worker's speeds."""

    def __init__(self, facts: EngineFacts | None = None) -> None:
        self._facts = facts

    def prefill_seconds(self, tokens: int, context: int = 0) -> float:
        """To compute ``tokens`` prompt tokens that no cache has, after ``context`` that one has."""
        return 1e-4 * tokens

    def step_seconds(self, running: int) -> float:
        """One decode step of ``running`` sequences."""
        return 0.01

    def transfer_seconds(self, tokens: int) -> float:
        """To fetch the KV of ``tokens`` from a prefill worker."""
        return 1e-6 * tokens

    def saw_prefill(self, tokens: int, seconds: float) -> None:
        """The worker computed ``tokens`` uncached prompt tokens in ``seconds``, queueing not counted."""

    def saw_step(self, running: int, seconds: float) -> None:
        """A step that computed one token for each of ``running`` sequences took ``seconds``."""

    def saw_transfer(self, tokens: int, seconds: float) -> None:
        """The KV of ``tokens`` was there ``seconds`` after the hand-over."""
