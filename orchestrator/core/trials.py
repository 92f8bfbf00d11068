"""What becomes of a decision whose request is to show whether a worker is well again, and the words of an alert."""

from __future__ import annotations

from orchestrator.core.decision import CachedBy, Choice, Decision, Rule
from orchestrator.core.evidence import Group, Record
from orchestrator.core.fleet import WorkerView
from orchestrator.core.messages import Alert
from orchestrator.core.session import Session
from orchestrator.core.spec import Role

KIND = "sick_pool"


def tried_with(record: Record, view: WorkerView, session: Session, decision: Decision) -> Decision:
    """The same decision, but for the worker's own half; what was learned of the worker is of when it was sick."""
    view.cost.anew()
    work, wait, out = view.cost.prefill_seconds(session.prompt_tokens), view.wait_seconds, record.group.out
    record.expected = work * (record.group.pace or 1.0) + wait
    worker_id = view.info.worker_id
    choice = Choice(worker_id, 0.0, 1, 1, view.depth, 0, CachedBy.UNKNOWN, wait, work, out)
    if view.info.role is Role.PREFILL:
        return Decision(decision.decode, worker_id, Rule.TRIAL, decision.policy, decision.on_decode, choice)
    return Decision(worker_id, decision.prefill, Rule.TRIAL, decision.policy, choice, decision.on_prefill)


def alert(group: Group) -> Alert:
    """That more of a pool looks sick than may be out, or that this is over."""
    if not group.full:
        text = f"no more {group.role} workers look sick than may be taken out"
        return Alert(KIND, group.model, text, over=True)
    text = f"more {group.role} workers look sick than may be taken out ({group.out} of {len(group.members)} are)"
    return Alert(KIND, group.model, text)
