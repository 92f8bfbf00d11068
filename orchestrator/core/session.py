"""A request's life.

Theory of operation
===================
A session is in one state. A signal moves it along the table below or, if the table has no such row, is an
``InvalidTransition``: a defect in the caller, never weather. Weather (stale outputs, workers lost twice) is filtered
out before, by wire id.

    WAITING ──placed apart──▶ PREFILLING ──prefill done──▶ DECODING ──first token──▶ STREAMING ──finished──▶ ENDED
       │  ▲                      │                          │  ▲ │
       │  └─────── lost ─────────┴──────── lost ────────────┘  │ └──finished──▶ ENDED
       │  ▲                                                    │ │
       │  └──────────────── lost, and can go on ───────────────│─┘
       └──────────────── placed together ──────────────────────┘

Four rules carry the rest:

- A session may end from any state: cancelled, expired, failed.
- Each placement has wire ids of its own, so what an older one still says is known to be stale.
- A half that is lost costs an attempt and a part of the gateway's retry budget (``retries``); the last attempt
  computes the prompt where it decodes. A worker that is merely full costs neither: the request waits for another.
- A decode lost in STREAMING goes on elsewhere: what was sent is then the end of a longer prompt. Where that would not
  give the same tokens (``resumable``) the loss ends it, as no token that was sent can be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from orchestrator.core.decision import CachedBy, Decision, Wait
from orchestrator.core.defects import InvalidTransition
from orchestrator.core.fleet import Claim
from orchestrator.core.in_flight import Prompt
from orchestrator.core.types import RequestReport
from orchestrator.core.values import mypyc_attr


class State(StrEnum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    STREAMING = "streaming"
    ENDED = "ended"


class Signal(StrEnum):
    PLACED_APART = "placed apart"
    PLACED_TOGETHER = "placed together"
    PREFILL_DONE = "prefill done"
    LOST = "lost"
    FIRST_TOKEN = "first token"  # noqa: S105
    FINISHED = "finished"
    ENDED_EARLY = "ended early"


TABLE: Final[dict[State, dict[Signal, State]]] = {
    State.WAITING: {
        Signal.PLACED_APART: State.PREFILLING,
        Signal.PLACED_TOGETHER: State.DECODING,
        Signal.ENDED_EARLY: State.ENDED,
    },
    State.PREFILLING: {
        Signal.PREFILL_DONE: State.DECODING,
        Signal.LOST: State.WAITING,
        Signal.ENDED_EARLY: State.ENDED,
    },
    State.DECODING: {
        Signal.FIRST_TOKEN: State.STREAMING,
        Signal.LOST: State.WAITING,
        Signal.FINISHED: State.ENDED,
        Signal.ENDED_EARLY: State.ENDED,
    },
    State.STREAMING: {
        Signal.FINISHED: State.ENDED,
        Signal.LOST: State.WAITING,
        Signal.ENDED_EARLY: State.ENDED,
    },
    State.ENDED: {},
}


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class Beginning:
    """The way to the first token, as the request's account tells it, whatever was lost later."""

    placed_at: float | None
    prefilled_at: float | None
    apart: bool
    cached_tokens: int
    transferred_tokens: int
    predicted_cached_tokens: int | None


@mypyc_attr(free_list_len=1)
@dataclass(slots=True, eq=False)
class Turn:
    """A signal, when it came, and the turn before it: a chain, so that a new one needs no look at the old ones."""

    signal: Signal
    at: float
    before: Turn | None


@mypyc_attr(free_list_len=1)
@dataclass(slots=True, eq=False)
class Session:
    """One request on its way. Times are on the caller's clock, in seconds."""

    request_id: str
    model: str
    prompt_tokens: int
    arrived_at: float
    place_by: float  # ends it if it is WAITING then
    deadline: float | None = None  # the client's own: ends it wherever it is
    local_only: bool = False
    blocks: Sequence[int] = ()
    tenant: str = ""
    priority: int = 0
    affinity: str = ""
    adapter: str = ""
    output_limit: int = 0
    resumable: bool = False
    state: State = State.WAITING
    placements: int = 0  # names its wires: never the same number twice
    attempts: int = 0  # placements less those that a full worker turned away
    last_attempt: bool = False
    turned_away: bool = False  # a worker was too full for it
    waited: Wait | None = None  # why it could not be sent at once
    predicted_tokens: int | None = None  # of its prompt, cached where it is computed; None where nobody knows
    predicted_by: CachedBy = CachedBy.UNKNOWN
    prefill_worker: str = ""
    prefill_wire: str = ""
    decode_worker: str = ""
    decode_wire: str = ""
    cached_tokens: int = 0
    transferred_tokens: int = 0
    sent_tokens: int = 0  # of its output: the end of its prompt since a decode was lost in mid-stream
    began: Beginning | None = None  # set once a decode was lost in mid-stream
    lost_because: str = ""
    decode_claim: Claim | None = None  # what it takes of these workers, or took
    prefill_claim: Claim | None = None
    expected: tuple[Prompt, ...] = ()  # what is on its way of it
    placed_at: float | None = None
    prefilled_at: float | None = None
    first_token_at: float | None = None
    due_before: float = 0.0  # ``WorkerView.due`` where it decodes, when it had its first token
    newest: Turn | None = None  # of its history

    @property
    def tokens(self) -> int:
        """What it asks of the cluster: its prompt, and the output that it may get."""
        return self.prompt_tokens + self.output_limit

    def placed(self, decision: Decision) -> None:
        """It goes there; what is remembered of it is what was predicted of the worker that computes its prompt."""
        self.placements += 1
        self.decode_worker, self.prefill_worker = decision.decode, decision.prefill or ""
        choice = decision.on_prefill if decision.prefill else decision.on_decode
        known = choice is not None and choice.cached_by is not CachedBy.UNKNOWN
        self.predicted_tokens = choice.cached_tokens if choice is not None and known else None
        self.predicted_by = choice.cached_by if choice is not None else CachedBy.UNKNOWN

    def story(self) -> str:
        """The way so far, for people."""
        turns, turn = [], self.newest
        while turn is not None:
            turns.append(turn)
            turn = turn.before
        steps, state = [], State.WAITING
        for turn in reversed(turns):
            steps.append(f"{turn.at:.3f} {state} ({turn.signal})")
            state = TABLE[state][turn.signal]
        return " -> ".join(steps)

    def advance(self, signal: Signal, now: float) -> None:
        """Moves along the table.

        Raises:
            InvalidTransition: the table has no such row.
        """
        to = TABLE[self.state].get(signal)
        if to is None:
            raise InvalidTransition(self, signal)
        self.newest = Turn(signal, now, self.newest)
        self.state = to
        if signal is Signal.PLACED_APART or signal is Signal.PLACED_TOGETHER:
            self.placed_at = now
            self.attempts += 1
        elif signal is Signal.PREFILL_DONE:
            self.prefilled_at = now
        elif signal is Signal.FIRST_TOKEN:
            if self.began is None:
                self.first_token_at = now
        elif signal is Signal.LOST:
            self.prefill_wire = self.decode_wire = self.prefill_worker = self.decode_worker = ""
            self.placed_at = self.prefilled_at = self.predicted_tokens = None

    def goes_on_after(self, sent_tokens: int) -> None:
        """Its prompt now ends with all that was sent of its output; ``tokens`` stays what it was."""
        if self.began is None:
            self.began = self._beginning()
        more = sent_tokens - self.sent_tokens
        self.sent_tokens = sent_tokens
        self.prompt_tokens += more
        self.output_limit = max(0, self.output_limit - more)

    def report(self, outcome: str, now: float, *, output_tokens: int, kv_bytes: int, detail: str) -> RequestReport:
        """The account of this session at its end."""
        began = self.began or self._beginning()
        return RequestReport(
            request_id=self.request_id,
            model=self.model,
            outcome=outcome,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            prompt_tokens=self.prompt_tokens - self.sent_tokens,
            output_tokens=output_tokens,
            cached_tokens=began.cached_tokens,
            transferred_tokens=began.transferred_tokens,
            kv_bytes=kv_bytes,
            predicted_cached_tokens=began.predicted_cached_tokens,
            tenant=self.tenant,
            waited=self.waited,
            queue_seconds=_between(self.arrived_at, began.placed_at),
            prefill_seconds=_between(began.placed_at, began.prefilled_at if began.apart else self.first_token_at),
            transfer_seconds=_between(began.prefilled_at, self.first_token_at) if began.apart else None,
            ttft_seconds=_between(self.arrived_at, self.first_token_at),
            total_seconds=now - self.arrived_at,
            attempts=self.attempts,
            detail=detail,
        )

    def _beginning(self) -> Beginning:
        return Beginning(
            self.placed_at,
            self.prefilled_at,
            bool(self.prefill_worker),
            self.cached_tokens,
            self.transferred_tokens,
            self.predicted_tokens,
        )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
