from __future__ import annotations

from orchestrator.core.policies.base import Ask
from orchestrator.core.policies.session_affinity import SessionAffinity


class AdapterAware(SessionAffinity):
    """An adapter's requests on as few workers as their load allows, so that it is seldom loaded anew."""

    about = "an adapter's requests on as few workers as their load allows; others on the least loaded"

    def key(self, ask: Ask) -> str:
        return ask.session.adapter
