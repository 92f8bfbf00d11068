"""What replicas reach at a load, beside engines that are stepped through."""

from __future__ import annotations

import random
from math import inf

import pytest

from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.fits import Fit, fits
from orchestrator.core.planning.serving import Option, demand_of, option
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.spec import LoadSpec, Role
from tests.planning import models
from tests.planning.plans import (
    CATALOGUE,
    SHORT,
)


def h100(role: Role, load: LoadSpec) -> Option:
    shape, kind = shape_of(models.LLAMA_3_8B), CATALOGUE.find("H100")
    fit = fits(shape, Cut(), kind, SHORT)
    assert isinstance(fit, Fit)
    return option(role, shape, kind, Cut(), SHORT, fit, demand_of(load))


class TestWhatReplicasCanDo:
    def test_both_halves_of_an_engine_that_serves_count(self) -> None:
        size = h100(Role.SERVE, LoadSpec(1, 2048, 100))
        rate = 0.55 / size.prompt.busy
        output = int(0.55 * size.batch / size.full_step / rate)
        both = h100(Role.SERVE, LoadSpec(1, 2048, output)).at(rate)
        assert both.busy > 1
        assert both.first == both.between == inf
        assert h100(Role.SERVE, LoadSpec(1, 2048, output // 4)).at(rate).busy < 1


class TestAgainstSimulatedQueues:
    """The formulas against engines that are stepped through, with arrivals by chance."""

    @pytest.mark.parametrize("rate", [4.0, 10.0])
    def test_prompts_wait_for_those_before_them(self, rate: float) -> None:
        pool = h100(Role.PREFILL, LoadSpec(1, 2048, 1))
        chance, now, free, waited = random.Random(1), 0.0, 0.0, 0.0
        for _ in range(20_000):
            now += chance.expovariate(rate)
            start = max(now, free)
            free = start + pool.prompt.busy
            waited += start - now
        measured = waited / 20_000 + pool.prompt.alone
        assert pool.at(rate).first == pytest.approx(measured, rel=0.1)

    @pytest.mark.parametrize("rate", [1.0, 5.0, 8.0])
    def test_one_engine_for_both_halves(self, rate: float) -> None:
        output = 100
        pool = h100(Role.SERVE, LoadSpec(1, 2048, output))
        chance, now, arrival = random.Random(2), 0.0, 0.0
        waiting: list[float] = []
        running: list[tuple[float, int]] = []
        firsts, betweens = [], []
        while len(betweens) < 2000:
            while arrival <= now:
                waiting.append(arrival)
                arrival += chance.expovariate(rate)
            if not waiting and not running:
                now = arrival
                continue
            now += pool.roofline.step(len(running), 2048 + output / 2) if running else 0.0
            now += pool.prompt.alone if waiting else 0.0
            done = [start for start, left in running if left == 1]
            betweens += [(now - start) / output for start in done]
            running = [(start, left - 1) for start, left in running if left > 1]
            if waiting:
                firsts.append(now - waiting.pop(0))
                running.append((now, output))
        estimate = pool.at(rate)
        assert estimate.between == pytest.approx(sum(betweens) / len(betweens), rel=0.15)
        assert estimate.first == pytest.approx(sum(firsts) / len(firsts), rel=0.1)
