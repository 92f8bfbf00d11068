"""What is going on during a long start, as a list of steps. Pure: renderers in ``progress`` show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class StepState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """One long step. Times are seconds on the caller's clock; ``began`` is None if it was over when first heard of."""

    name: str
    state: StepState
    detail: str
    began: float | None
    ended: float | None = None

    def elapsed(self, now: float) -> float | None:
        if self.began is None:
            return None
        return (now if self.ended is None else self.ended) - self.began


@dataclass(slots=True)
class Board:
    """Steps in the order in which they were first heard of."""

    steps: dict[str, Step] = field(default_factory=dict)

    def put(self, name: str, state: StepState, detail: str, now: float) -> Step | None:
        """Records a step's state; returns the step if that changed something a person would want to see."""
        old = self.steps.get(name)
        if old and (old.state, old.detail) == (state, detail):
            return None
        over = state in (StepState.DONE, StepState.FAILED)
        under_way = old.began if old and old.ended is None else None
        began = under_way if under_way is not None or over else now
        step = Step(name, state, detail, began, ended=now if over else None)
        self.steps[name] = step
        return step

    def unfinished(self) -> list[Step]:
        return [step for step in self.steps.values() if step.state is not StepState.DONE]

    def end(self, now: float) -> None:
        """Stops the clocks of steps that were under way."""
        for name, step in self.steps.items():
            if step.ended is None:
                self.steps[name] = replace(step, ended=now)


_STATES = {
    "pending": StepState.WAITING,
    "starting": StepState.RUNNING,
    "ready": StepState.DONE,
    "draining": StepState.RUNNING,
    "failed": StepState.FAILED,
    "dead": StepState.FAILED,
}


def fleet_steps(status: Any) -> Iterator[tuple[str, StepState, str]]:
    """A ClusterStatus as (step, state, detail), workers first. Gateways that others started are theirs to wait for."""
    several = len(status.models) > 1
    for model in status.models:
        for pool in model.pools:
            for worker in pool.workers:
                name = f"{model.name} {worker.id}" if several and model.name not in worker.id else worker.id
                yield f"worker {name}", _state(worker), _detail(worker)
    for gateway in _own(status):
        detail = f"http {gateway.http}, grpc {gateway.grpc}" if gateway.state == "ready" else _detail(gateway)
        yield f"gateway {gateway.id}", _state(gateway), detail


def _state(actor: Any) -> StepState:
    return _STATES.get(actor.state, StepState.RUNNING)


def _detail(actor: Any) -> str:
    if actor.state == "ready":
        return "ready"
    if actor.state == "pending":
        return str(actor.stage or "waits for its place")
    if actor.state in ("failed", "dead"):
        return why(actor)
    return str(actor.stage or actor.state)


def why(actor: Any) -> str:
    """What an actor that is down says of it, without its name in front."""
    return str(actor.detail or actor.state).removeprefix(f"{actor.id}: ")


def broken(status: Any) -> Iterable[Any]:
    """Workers and gateways that are down now."""
    workers = [worker for model in status.models for pool in model.pools for worker in pool.workers]
    return [actor for actor in (*workers, *_own(status)) if actor.state in ("failed", "dead")]


def _own(status: Any) -> list[Any]:
    return [gateway for gateway in status.gateways if not gateway.outside]
