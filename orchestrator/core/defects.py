"""What is raised where the code itself is at fault, never weather."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.session import Session, Signal


class InvalidTransition(RuntimeError):  # noqa: N818
    """A signal that the state does not know, with the story that led there."""

    def __init__(self, session: Session, signal: Signal) -> None:
        super().__init__(
            f"request {session.request_id}: no way from {session.state} by '{signal}' (story: {session.story()})"
        )
