"""What the times between events teach: a worker's own speed, whatever its queue was."""

from __future__ import annotations

import pytest

from orchestrator.core import learning
from orchestrator.core.cost import CostModel
from orchestrator.core.fleet import Fleet, WorkerView
from orchestrator.core.session import Session, Signal
from orchestrator.core.spec import Role
from tests.core.support import worker

pytestmark = pytest.mark.source


class Heard(CostModel):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.prefills: list[tuple[int, float]] = []
        self.steps: list[tuple[int, float]] = []
        self.transfers: list[tuple[int, float]] = []

    def saw_prefill(self, tokens: int, seconds: float) -> None:
        self.prefills.append((tokens, round(seconds, 6)))

    def saw_step(self, running: int, seconds: float) -> None:
        self.steps.append((running, round(seconds, 6)))

    def saw_transfer(self, tokens: int, seconds: float) -> None:
        self.transfers.append((tokens, round(seconds, 6)))


@pytest.fixture
def view() -> WorkerView:
    made = Fleet().up(worker("w", Role.SERVE), 0.0)
    made.cost = Heard()
    return made


def placed(at: float, tokens: int) -> Session:
    session = Session("r", "m", tokens, at, place_by=at + 30)
    session.advance(Signal.PLACED_TOGETHER, at)
    return session


def test_a_queue_is_not_slowness(view: WorkerView) -> None:
    for ended in (1.0, 2.0, 3.0):  # all sent at once, computed one after the other
        learning.prefilled(view, placed(0.0, 500), 0, ended)
    learning.prefilled(view, placed(9.0, 500), 100, 9.5)
    learning.prefilled(view, placed(20.0, 1), 0, 20.1)
    assert view.cost.prefills == [(500, 1.0), (500, 1.0), (500, 1.0), (400, 0.5)]


def test_prompts_that_one_step_computed_are_one_observation(view: WorkerView) -> None:
    for _ in range(3):
        learning.prefilled(view, placed(1.0, 100), 0, 2.0)
    learning.prefilled(view, placed(5.0, 100), 0, 6.0)
    assert view.cost.prefills == [(300, 1.0)]


def test_only_steps_without_prompts_in_them_are_decode_steps(view: WorkerView) -> None:
    view.running = 4
    for at in (1.0, 1.02, 1.04):
        learning.stepped(view, at)
    view.prefill_tokens = 100
    learning.stepped(view, 1.5)
    view.prefill_tokens = 0
    learning.stepped(view, 1.52)
    view.running = 5
    learning.stepped(view, 1.54)
    assert view.cost.steps == [(4, 0.02), (4, 0.02)]


def test_a_pause_in_what_is_heard_is_no_step(view: WorkerView) -> None:
    """Others' requests go on while this gateway has none there, and so hears of no steps."""
    view.running = 4
    learning.stepped(view, 1.0)
    learning.silent(view)
    learning.stepped(view, 1.9)
    learning.stepped(view, 1.92)
    assert view.cost.steps == [(4, 0.02)]


def test_transfer_is_what_came_before_the_first_step(view: WorkerView) -> None:
    session = Session("r", "m", 500, 0.0, place_by=30)
    session.advance(Signal.PLACED_APART, 0.0)
    session.advance(Signal.PREFILL_DONE, 1.0)
    session.transferred_tokens = 500
    step = view.cost.step_seconds(1)
    learning.transferred(view, session, 1.25 + step)
    assert view.cost.transfers == [(500, 0.25)]
