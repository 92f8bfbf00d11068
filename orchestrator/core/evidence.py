"""What speaks against a worker: failures, broken sessions and slow work, each held against the rest of its pool."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from orchestrator.core.fit import Pace
from orchestrator.core.fleet import WorkerView
from orchestrator.core.spec import HealthSpec, Role

KEEP: Final = 0.967  # of what was counted, at each look: a memory of 30 s
IN_A_ROW: Final = 5  # failures, whatever came before them
LEAST_FAILURES: Final = 4.0
LEAST_BREAKS: Final = 2.5  # sessions that broke lately; three in half a minute
TIMES_PEERS: Final = 3.0  # as much as the others' failures and breaks
LEAST_SEEN: Final = 16  # steps or prompts, before a worker's speed says anything
AS_USUAL: Final = 1.5  # times its peers' steps: where they are below that, it was prompts that tokens waited for
SLOW_SECONDS: Final = 3.0  # that it has to go on,
SLOW_SEEN: Final = 8  # over so many new observations,
SLOW_TOLD: Final = 2  # or so many requests that end
LEAST_TOLD: Final = 4  # requests
TOLD_GAIN: Final = 1 / 8
LEAST_TOKENS: Final = 8  # of a request that tells how long each takes
SAMPLED: Final = 256  # workers of a large pool whose median stands for all of them


class State(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    OUT = "out"
    TRIAL = "trial"


class Evidence(StrEnum):
    SLOW = "slow"
    FAILING = "failing"
    FLAPPING = "flapping"


class Record:
    """What is known of one worker, across its sessions. ``view`` is None while none is open, or it drains."""

    __slots__ = (
        "back_at",
        "backoff",
        "bad",
        "began_at",
        "broke",
        "evidence",
        "expected",
        "good",
        "group",
        "left_at",
        "row",
        "slow_seen",
        "slow_since",
        "state",
        "tempo",
        "told",
        "trial",
        "until",
        "view",
        "why",
        "worker_id",
    )

    def __init__(self, worker_id: str, group: Group) -> None:
        self.worker_id = worker_id
        self.group = group
        self.view: WorkerView | None = None
        self.state = State.HEALTHY
        self.evidence = Evidence.FAILING
        self.why = ""
        self.good = 0.0  # halves that ended well
        self.bad = 0.0  # and that failed
        self.row = 0  # failures since one ended well
        self.broke = 0.0  # sessions
        self.tempo = 0.0  # log of what a token took, over what was expected for as many sequences: newest requests'
        self.told = 0  # requests that this is the mean of
        self.slow_since = -1.0
        self.slow_seen = 0
        self.left_at = 0.0  # while there is no view
        self.until = 0.0  # OUT ends
        self.backoff = 0.0
        self.back_at = 0.0
        self.trial = ""  # the request that it is tried with
        self.began_at = -1.0  # its first token; -1 until then
        self.expected = 0.0  # seconds of that one's prompt at one of its peers

    @property
    def apart(self) -> bool:
        """Whether it is kept out of its pool."""
        return self.state is State.OUT or self.state is State.TRIAL

    def faded(self) -> None:
        """What was counted gets old; once a look."""
        self.good *= KEEP
        if self.bad or self.broke:
            self.bad *= KEEP
            self.broke *= KEEP

    def forget(self) -> None:
        """Nothing speaks against it."""
        self.good = self.bad = self.broke = 0.0
        self.row = self.told = 0
        self.tempo = 0.0
        self.slow_since = -1.0
        self.why = ""


class Group:
    """A pool's workers that have a session and don't drain. ``pace`` and ``tempo``: their medians; 0 while unknown."""

    __slots__ = ("alarmed", "bad", "broke", "full", "good", "members", "model", "out", "pace", "role", "tempo")

    def __init__(self, model: str, role: Role) -> None:
        self.model = model
        self.role = role
        self.members: dict[str, Record] = {}
        self.out = 0
        self.good = self.bad = self.broke = 0.0
        self.pace = 0.0
        self.tempo = 0.0
        self.full = False  # since the last round somebody stayed in only because as many were out as may be
        self.alarmed = False

    def most_out(self, share: float) -> int:
        """How many of them may be out: a share, at least one unless that is 0, and never the last one."""
        count = len(self.members)
        return max(0, min(count - 1, max(1, int(share * count)))) if share > 0.0 else 0

    def begin_round(self) -> None:
        """What was counted gets old, and the medians are taken anew."""
        self.good *= KEEP
        self.bad *= KEEP
        self.broke *= KEEP
        members = list(self.members.values())
        some = members[:: max(1, len(members) // SAMPLED)]
        paces = [pace(record.view) for record in some if record.view is not None]
        self.pace = _median([each.factor for each in paces if each.seen >= LEAST_SEEN])
        self.tempo = _median([math.exp(record.tempo) for record in some if record.told >= LEAST_TOLD])


def _median(values: list[float]) -> float:
    """The lower median; 0 where there are fewer than two."""
    return sorted(values)[(len(values) - 1) // 2] if len(values) > 1 else 0.0


def pace(view: WorkerView) -> Pace:
    """What a worker is compared by: prompts where only those are computed, steps anywhere else."""
    return view.cost.prefill if view.info.role is Role.PREFILL else view.cost.step


def sick(record: Record, spec: HealthSpec) -> tuple[Evidence, str] | None:
    """Whether its failures or breaks are enough to take it out, and the words for it."""
    group, bad = record.group, record.bad
    others = max(0.0, group.bad - bad)
    rest = others / max(1.0, group.good - record.good + others)
    share = bad / max(1.0, record.good + bad)
    often = bad >= LEAST_FAILURES and share >= spec.failing and share > TIMES_PEERS * rest
    if often or (record.row >= IN_A_ROW and bad >= 1.0 and rest < 0.5):
        why = f"{share:.0%} of what it had to do lately failed ({record.row} in a row), {rest:.0%} at its peers"
        return Evidence.FAILING, why
    mean = max(0.0, group.broke - record.broke) / max(1, len(group.members) - 1)
    if record.broke >= LEAST_BREAKS and record.broke >= TIMES_PEERS * mean:
        why = f"its session broke {record.broke:.0f} times lately, {mean:.1f} times with each of its peers"
        return Evidence.FLAPPING, why
    return None


def per_token(record: Record, due: float, tokens: int) -> None:
    """A request has ended that got ``tokens`` after its first one, in a time in which ``due`` were."""
    if due > 0.0:
        record.told += 1
        record.tempo += (math.log(due / tokens) - record.tempo) * max(TOLD_GAIN, 1.0 / record.told)


def slow(record: Record, view: WorkerView, spec: HealthSpec, now: float) -> str | None:
    """Whether its work has taken far longer than its peers' for a while, in words; to be asked at each look."""
    own, group = pace(view), record.group
    times = steps = own.factor / group.pace if group.pace and own.seen >= LEAST_SEEN else 0.0
    if group.tempo and record.told >= LEAST_TOLD and not 0.0 < steps < AS_USUAL:
        times = max(times, math.exp(record.tempo) / group.tempo)
    seen = own.seen + SLOW_SEEN // SLOW_TOLD * record.told
    if times < spec.slow:
        record.slow_since = -1.0
    elif record.slow_since < 0:
        record.slow_since, record.slow_seen = now, seen
    elif now - record.slow_since >= SLOW_SECONDS and seen >= record.slow_seen + SLOW_SEEN:
        what = "prompts" if view.info.role is Role.PREFILL else "tokens"
        return f"its {what} take {times:.1f} times as long as its peers' for the same work"
    return None
