"""What was decided for a request, as data, and the words for it."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.core.values import dataclass, mypyc_attr


class Rule(StrEnum):
    """Why a prompt is computed where it is."""

    ONE_POOL = "one pool serves both halves"
    LOCAL_ONLY = "the request needs its prompt computed where it decodes"
    LAST_ATTEMPT = "the last attempt computes the prompt where it decodes"
    NO_PREFILL_WORKER = "no prefill worker takes requests"
    NO_PARTNER = "no prefill worker that takes requests can hand KV over to it"
    CONFIGURED_APART = "prefill apart, as configured"
    CONFIGURED_IN_PLACE = "prefill in place, as configured"
    CHEAPER_APART = "prefill apart is expected to be quicker"
    SPARES_DECODE = "prefill apart spares the sequences that decode there"
    PREFILL_FULL = "every prefill worker is full"
    CHEAPER_IN_PLACE = "prefill in place is expected to be quicker"
    RESERVED = "as reserved"
    RESERVED_LOST = "the reserved decode worker was lost"
    TRIAL = "a trial: the worker was taken out, and is let back in if this goes well"


class Wait(StrEnum):
    """Why a request can't be sent anywhere now."""

    NO_WORKER = "no worker takes requests"
    FULL = "every worker is full"
    OTHERS_FIRST = "others were waiting already"


class CachedBy(StrEnum):
    """How the router knows what a worker's prefix cache has."""

    EVENTS = "events"  # the worker said so
    ROUTED = "routed"  # guessed from what was sent there
    UNKNOWN = "unknown"  # the prompt has no block hashes


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class Choice:
    """One half's worker, and the numbers as the router saw them when it chose."""

    worker_id: str
    score: float  # in [0, 1]; 1 is best
    candidates: int  # that were scored
    eligible: int  # in the pool
    depth: int  # requests there before this one
    cached_tokens: int  # of the prompt, predicted
    cached_by: CachedBy
    wait_seconds: float  # until its work begins, predicted
    work_seconds: float  # of its own prompt, predicted
    out: int = 0  # workers of the pool that are taken out as sick


@mypyc_attr(free_list_len=1)
@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request's halves go, and why. ``prefill`` is None where decode does both.

    ``apart_seconds`` and ``in_place_seconds`` are the predicted times to the first token; None where not compared.
    """

    decode: str
    prefill: str | None
    rule: Rule
    policy: str = ""
    on_decode: Choice | None = None
    on_prefill: Choice | None = None
    apart_seconds: float | None = None
    in_place_seconds: float | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """In words for people."""
        lines = [
            _words(half, choice, self.policy)
            for half, choice in (("decode", self.on_decode), ("prefill", self.on_prefill))
            if choice is not None
        ]
        if self.apart_seconds is None or self.in_place_seconds is None:
            return (*lines, self.rule)
        times = f"apart {self.apart_seconds * 1e3:.1f} ms, in place {self.in_place_seconds * 1e3:.1f} ms"
        return (*lines, f"{self.rule} ({times})")


def _words(half: str, choice: Choice, policy: str) -> str:
    known = {CachedBy.EVENTS: "", CachedBy.ROUTED: " by what was routed there", CachedBy.UNKNOWN: " unknown"}
    of = f"{choice.eligible} ({choice.out} more taken out)" if choice.out else f"{choice.eligible}"
    return (
        f"{half} on {choice.worker_id}: {policy} {choice.score:.2f}, best of {choice.candidates} of {of}; "
        f"{choice.depth} requests there, {choice.cached_tokens} tokens cached{known[choice.cached_by]}, "
        f"wait {choice.wait_seconds * 1e3:.1f} ms, work {choice.work_seconds * 1e3:.1f} ms"
    )
