"""Requests made up by a shape's rules: arrivals at random or in bursts, prompts that share fronts by Zipf's law."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from random import Random
from typing import Any

from orchestrator.core.errors import ConfigError
from orchestrator.sim.offer import Offer, spread, unshared

DEFAULT_SECONDS = 60.0
KINDS = ("poisson", "bursts")


@dataclass(frozen=True, slots=True)
class Shape:
    """A load. Lengths are means in tokens; ``prompt_cv`` and ``output_cv`` their standard deviations over the means.

    A share of ``shared`` of all prompts begins with one of ``prefixes`` fronts of ``prefix`` tokens, the n-th most
    frequent one with a weight of 1/n**``zipf``. In bursts, ``on`` of each ``period`` seconds has ``factor`` times the
    rate of the rest; ``rate`` is the mean (0: two a second for each replica). ``tenants`` come equally often.
    """

    kind: str = "poisson"
    rate: float = 0.0
    prompt: float = 512.0
    prompt_cv: float = 0.5
    output: float = 128.0
    output_cv: float = 0.5
    shared: float = 0.8
    prefixes: int = 100
    prefix: int = 256
    zipf: float = 1.0
    tenants: int = 1
    period: float = 60.0
    on: float = 0.2
    factor: float = 5.0

    @classmethod
    def parse(cls, text: str) -> Shape:
        """'poisson,prompt=2000,prefixes=50'. Raises ConfigError."""
        kind, *settings = text.split(",")
        if kind not in KINDS:
            raise ConfigError(f"found {kind!r}, allowed: {', '.join(KINDS)}", where=f"--trace generate:{text}")
        known = {entry.name: entry for entry in fields(cls) if entry.name != "kind"}
        chosen: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in known:
                raise ConfigError(f"found {name!r}, allowed: {', '.join(known)}", where=f"--trace generate:{text}")
            chosen[name] = _value(known[name].default, name, value, text)
        shape = cls(kind, **chosen)
        if shape.on > 1 or shape.shared > 1 or min(shape.prompt, shape.output, shape.tenants, shape.prefixes) < 1:
            what = "on and shared are shares of 1; prompt, output, prefixes and tenants are at least 1"
            raise ConfigError(what, where=f"--trace generate:{text}")
        return shape


def _value(default: Any, name: str, text: str, where: str) -> float:
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"{name} is {text!r}, allowed: {kind} from 0", where=f"--trace generate:{where}")
    return value


def generate(shape: Shape, block_size: int, seed: int, requests: int | None, seconds: float | None) -> list[Offer]:
    """Offers of that shape, ``requests`` of them or for so many seconds (a minute if neither is said)."""
    if requests is None and seconds is None:
        seconds = DEFAULT_SECONDS
    rng = Random(f"{seed} arrivals")
    fronts = _fronts(shape, block_size)
    weights = list(accumulate(1 / n**shape.zipf for n in range(1, shape.prefixes + 1)))
    tenants = ["" if shape.tenants == 1 else f"tenant-{n}" for n in range(shape.tenants)]
    found: list[Offer] = []
    own = 0
    at = 0.0
    while requests is None or len(found) < requests:
        at = _next(at, shape, rng)
        if seconds is not None and at >= seconds:
            break
        front = bisect(weights, rng.random() * weights[-1]) if rng.random() < shape.shared else -1
        prompt = _length(shape.prompt, shape.prompt_cv, rng)
        blocks: Sequence[int] = unshared(own, prompt // block_size)
        if front >= 0:
            prompt = max(prompt, shape.prefix + 1)
            shared = fronts[front]
            blocks = [*shared, *unshared(own, prompt // block_size - len(shared))]
        own += len(blocks)
        tenant = tenants[int(rng.random() * shape.tenants)] if shape.tenants > 1 else ""
        output = _length(shape.output, shape.output_cv, rng)
        found.append(Offer(at, prompt, output, blocks, tenant, f"front-{front}" if front >= 0 else ""))
    return found


def _fronts(shape: Shape, block_size: int) -> list[list[int]]:
    full = shape.prefix // block_size
    return [[spread(n * full + block) for block in range(full)] for n in range(shape.prefixes)]


def _length(mean: float, cv: float, rng: Random) -> int:
    """At least one token, log-normal: lengths have long tails."""
    if not cv:
        return round(mean)
    variance = math.log1p(cv * cv)
    return max(1, round(rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))))


def _next(at: float, shape: Shape, rng: Random) -> float:
    """The arrival after ``at``. Where the rate changes on the way, chance begins anew: it has no memory."""
    if shape.kind == "poisson":
        return at + rng.expovariate(shape.rate)
    calm = shape.rate / (1 + shape.on * (shape.factor - 1))
    while True:
        cycle, phase = divmod(at, shape.period)
        bursting = phase < shape.on * shape.period
        until = (cycle + (shape.on if bursting else 1)) * shape.period
        rate = calm * shape.factor if bursting else calm
        after = at + rng.expovariate(rate) if rate else until
        if after < until:
            return after
        at = max(until, math.nextafter(at, math.inf))
