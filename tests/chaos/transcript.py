"""What a client asked, what it got, and what it would have got had nothing gone wrong."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from zlib import crc32

from workers.mock_sequence import Vocabulary

LONG_GAP = 0.1  # seconds between two tokens that are worth keeping
DONE = "done"
CANCELLED = "cancelled"
HUNG = "hung"


@dataclass(frozen=True)
class Ask:
    """One request. ``cancel_after``: tokens after which the client leaves; ``deadline``: seconds that it gives;
    ``known``: what each of its sequences was when nothing went wrong, of an engine whose tokens can't be told."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    grpc: bool = False
    n: int = 1
    seed: int | None = None
    stop_token: int | None = None
    cancel_after: int | None = None
    deadline: float | None = None
    known: tuple[tuple[int, ...], ...] = ()

    def expected(self, index: int = 0) -> list[int]:
        """The fault-free transcript of a sequence."""
        if not self.known:
            return self._of_a_mock()
        tokens = list(self.known[index])
        return tokens[: tokens.index(self.stop_token) + 1] if self.stop_token in tokens else tokens

    def _of_a_mock(self) -> list[int]:
        """What its tokens are is in the tokens before, and so each of ``n`` sequences is like the others."""
        tokens, vocabulary = array("I", self.prompt), Vocabulary()
        checksum, made = crc32(tokens.tobytes()), []
        while len(made) < self.max_tokens:
            token = vocabulary.first + checksum % vocabulary.size
            made.append(token)
            if token == self.stop_token:
                break
            checksum = crc32(array("I", (token,)).tobytes(), checksum)
        return made


@dataclass
class Gap:
    """Two tokens of one sequence that came long after one another."""

    began: float
    seconds: float


@dataclass
class Attempt:
    """One call. ``ends``: each word of an end that came, of which there has to be one; ``broke_at``: the connection."""

    began: float
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, list[str]] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    broke_at: float | None = None
    ended: float = 0.0
    first_at: float | None = None
    gaps: list[Gap] = field(default_factory=list)
    late: int = 0  # events after the end
    said: str = ""  # with an error
    _last: dict[int, float] = field(default_factory=dict)

    def heard(self, index: int, tokens: list[int], reason: str | None, now: float) -> None:
        if self.ends:
            self.late += 1
        if tokens:
            last = self._last.get(index)
            if last is not None and now - last > LONG_GAP:
                self.gaps.append(Gap(last, now - last))
            self._last[index] = now
            self.first_at = self.first_at or now
            self.tokens.setdefault(index, []).extend(tokens)
        if reason:
            self.finished.setdefault(index, []).append(reason)

    @property
    def output_tokens(self) -> int:
        return sum(len(each) for each in self.tokens.values())


@dataclass
class Transcript:
    """A request and its attempts: more than one only where a gateway died under it."""

    ask: Ask
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        ends = self.attempts[-1].ends if self.attempts else []
        return ends[0] if ends else "none"


def story(one: Transcript, now: float) -> str:
    """A request's attempts in words, their times as seconds before ``now``."""
    how = "gRPC" if one.ask.grpc else "HTTP"
    told = [
        f"began {now - each.began:.1f} s ago, {each.output_tokens} tokens, ends {each.ends}"
        + (f", broke {now - each.broke_at:.1f} s ago" if each.broke_at is not None else "")
        for each in one.attempts
    ]
    return f"request {one.ask.number} over {how}, {one.ask.max_tokens} tokens, n={one.ask.n}: {'; '.join(told)}"


def asks(count: int, seed: int, longest: int = 64) -> Iterator[Ask]:
    """A mix: short and long, over HTTP and gRPC, several sequences, seeds, stops, clients that leave, deadlines."""
    rng = Random(seed)
    documents = [tuple(rng.randrange(1, 900) for _ in range(160)) for _ in range(8)]
    for number in range(count):
        prompt = (*rng.choice(documents)[: rng.choice((0, 32, 160))], *(rng.randrange(1, 900) for _ in range(8)))
        ask = Ask(number, (number % 900 + 1, *prompt), rng.choice((1, 4, 16, longest)), grpc=rng.random() < 0.25)
        kind = rng.random()
        over: dict[str, object] = {"seed": rng.randrange(1 << 20) if rng.random() < 0.3 else None}
        if kind < 0.10:
            over["n"] = rng.choice((2, 3))
        elif kind < 0.20:
            over["stop_token"] = rng.choice(ask.expected())
        elif kind < 0.28:
            over["cancel_after"] = rng.choice((0, 1, ask.max_tokens // 2))
        elif kind < 0.33:
            over["deadline"] = rng.choice((0.05, 0.3, 30.0))
        yield Ask(**{**ask.__dict__, **over})  # type: ignore[arg-type]


def quiet(ask: Ask) -> Ask:
    """The same with nothing that cuts it short and nothing left to chance, so that it says what it will be again."""
    seed = ask.number if ask.n > 1 and ask.seed is None else ask.seed
    return replace(ask, seed=seed, stop_token=None, cancel_after=None, deadline=None)


def recorded(ask: Ask, quietly: Transcript, rng: Random) -> Ask:
    """``ask``, held to what came of it when nothing went wrong."""
    attempt = quietly.attempts[-1]
    if len(quietly.attempts) > 1 or attempt.ends != [DONE]:
        raise ValueError(f"request {ask.number} ended with {attempt.ends} in quiet: {attempt.said}")
    known = tuple(tuple(attempt.tokens[index]) for index in range(ask.n))
    stop = None if ask.stop_token is None else rng.choice(known[0])
    return replace(ask, seed=quietly.ask.seed, stop_token=stop, known=known)
