"""What replicas of a pool reach at a load: waiting, batches, and how many replicas it takes.

- Prompts are computed one after another, short ones several together; they wait as in an M/D/1 queue, on average
  ``rho / (2 (1 - rho))`` times what one turn takes (Pollaczek and Khinchine; Kleinrock, "Queueing systems", 1975).
- Sequences that decode are as many as arrive while one of them is there (Little, 1961): the batch is the smallest one
  that makes tokens as fast as they are asked for.
- A replica that serves both halves computes each chunk of a prompt in a step with the sequences that decode. With
  ``p`` of its time in prompts, each token takes ``1 / (1 - p)`` as long on average.

Replicas share requests evenly. All times are means; those of single requests scatter around them. Beside engines that
are stepped through with arrivals by chance, times to the first token come out right or a little long; times between
tokens up to a twentieth short where half of the time is used, a seventh at most: prompts that come in a row meet more
sequences than the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.fits import Fit
from orchestrator.core.planning.roofline import PromptSeconds, Roofline, prompt_bytes
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.spec import LoadSpec, Role

MOST_BUSY = 0.8  # of the time or of the network: above it, waiting grows faster than any forecast of the load is good
MOST_REPLICAS = 100_000
USD_PER_WATT = 1e-9  # an hour
HALVINGS = 40  # of an interval that holds a number sought


@dataclass(frozen=True, slots=True)
class Demand:
    """A load by what it makes replicas do: requests a second, and tokens of one of them on average."""

    rate: float
    fresh: float  # prompt tokens to compute, at least one
    cached: float
    output: int

    @property
    def prompt(self) -> float:
        return self.fresh + self.cached

    @property
    def context(self) -> float:
        """Tokens before the one that is decoded, on average."""
        return self.prompt + self.output / 2.0


def demand_of(load: LoadSpec) -> Demand:
    prompt = max(1, load.prompt_tokens)
    fresh = max(1.0, prompt * (1.0 - load.prefix_hit))
    return Demand(load.requests_per_second, fresh, prompt - fresh, load.output_tokens)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one replica reaches at its part of the load, in seconds; inf where it can't keep up.

    ``first`` is its part of the time to the first token, ``between`` the time between two others (0 where it decodes
    none), ``batch`` the sequences that decode at once, ``busy`` the part of what it can do at most that is asked for.
    """

    first: float
    between: float
    batch: float
    busy: float


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a pool: a kind of device and a cut that fit, with its speeds for requests of the demand's sizes.

    ``batch`` is the most sequences that one replica decodes at once, ``full_step`` the seconds of a step of these;
    ``handed`` the bytes of a prompt's KV that go to or come from another pool.
    """

    role: Role
    kind: DeviceKind
    cut: Cut
    share: float
    fit: Fit
    roofline: Roofline
    demand: Demand
    prompt: PromptSeconds
    handed: int
    batch: int
    full_step: float

    @property
    def devices(self) -> int:
        """Of a replica, begun ones counted whole."""
        return self.cut.devices * self.cut.data

    @property
    def usd_per_hour(self) -> float:
        """Of a replica."""
        return self.devices * self.share * self.kind.usd_per_hour

    @property
    def cost(self) -> float:
        """What the search goes by: dollars by the hour, and next to nothing for each watt, as money alone doesn't say
        which of one's own devices to take."""
        return self.usd_per_hour + self.watts * USD_PER_WATT

    @property
    def watts(self) -> float:
        """Of a replica, at its devices' limit."""
        return self.devices * self.share * self.kind.watts

    def at(self, rate: float) -> Estimate:
        """What a replica reaches with so many requests a second of its own."""
        match self.role:
            case Role.PREFILL:
                return self._prefill(rate)
            case Role.DECODE:
                return self._decode(rate)
            case Role.SERVE:
                return self._serve(rate)

    @property
    def most(self) -> float:
        """Requests a second with which a replica is busy as much as it should be at most."""
        each = (
            self.prompt.busy
            if self.role is not Role.DECODE
            else max(1, self.demand.output) * self.full_step / self.batch
        )
        low, high = 0.0, 1.0 / each
        for _ in range(HALVINGS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if self.at(middle).busy <= MOST_BUSY else (low, middle)
        return low

    def _prefill(self, rate: float) -> Estimate:
        busy = max(rate * self.prompt.busy, rate * self.handed / self.roofline.network)
        first = _waiting(rate * self.prompt.busy, self.prompt.busy * self.prompt.together) + self.prompt.alone
        return Estimate(first if busy < 1 else inf, 0.0, 0.0, busy)

    def _decode(self, rate: float) -> Estimate:
        tokens = rate * self.demand.output
        busy = max(tokens * self.full_step / self.batch, rate * self.handed / self.roofline.network)
        if busy >= 1:
            return Estimate(inf, inf, float(self.batch), busy)
        batch = self._batch(tokens)
        step = self._step(batch)
        return Estimate(step, step, batch, busy)

    def _serve(self, rate: float) -> Estimate:
        tokens, prompts = rate * self.demand.output, rate * self.prompt.busy
        busy = prompts + tokens * self.full_step / self.batch
        if busy >= 1:
            return Estimate(inf, inf, float(self.batch), busy)
        batch = self._batch(tokens / (1.0 - prompts))
        step = self._step(batch)
        beside = min(1.0, batch) * step * self.prompt.steps  # decoding in the steps of a prompt, if anything decodes
        turn = self.prompt.busy * self.prompt.together + beside
        in_turns = rate * turn / self.prompt.together
        first = min(1.0, batch) * step / 2.0 + _waiting(in_turns, turn) + self.prompt.alone + beside
        return Estimate(first, step / (1.0 - prompts), batch, max(busy, in_turns))

    def _step(self, batch: float) -> float:
        return self.roofline.step(batch, self.demand.context)

    def _batch(self, tokens_per_second: float) -> float:
        """The smallest batch that makes so many tokens a second; larger ones always make more."""
        low, high = 0.0, float(self.batch)
        for _ in range(HALVINGS):
            middle = (low + high) / 2.0
            low, high = (low, middle) if middle >= tokens_per_second * self._step(middle) else (middle, high)
        return high


def option(
    role: Role, shape: ModelShape, kind: DeviceKind, cut: Cut, settings: Settings, fit: Fit, demand: Demand
) -> Option:
    """ConfigError if the device has no rate for the model's numbers."""
    roofline = Roofline(shape, cut, kind, settings)
    batch = max(1, min(fit.sequences, fit.max_num_seqs)) * cut.data
    return Option(
        role=role,
        kind=kind,
        cut=cut,
        share=settings.share,
        fit=fit,
        roofline=roofline,
        demand=demand,
        prompt=roofline.prompt(demand.fresh, demand.cached),
        handed=0 if role is Role.SERVE else prompt_bytes(shape, ceil(demand.prompt), settings),
        batch=batch,
        full_step=roofline.step(batch, demand.context),
    )


def _waiting(busy: float, turn: float) -> float:
    return busy / (2.0 * (1.0 - busy)) * turn if busy < 1 else inf


def least(meets: Callable[[int], bool], low: int = 1, most: int = MOST_REPLICAS) -> int | None:
    """The least number from ``low`` on that meets, if whatever is above one that does meets too; None if none does."""
    if low > most:
        return None
    step, high = 1, low
    while not meets(high):
        if high >= most:
            return None
        low, high, step = high + 1, min(most, high + step), step * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle + 1, high)
    return high
