"""Drives one surface with hypothesis: rounds of cases, a judgement for each, the smallest case of what fails."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.aim import Aim

ROUND = 500
SLOW_SECONDS = 5.0  # what no case may take, whatever is in it
SHRINK_SECONDS = 15.0  # for a smaller case, once one has failed: the others wait for their turn


class HungError(BaseException):
    """No answer in time. Not an Exception: hypothesis would look for a smaller one, a wait at a time."""


@dataclass(frozen=True)
class Surface:
    """A way in. ``run`` sends a case and returns its outcome in words; whatever it raises is a finding."""

    name: str
    cases: st.SearchStrategy[Any]
    run: Callable[[Any], str]
    may_log: bool = False  # whether what is wrong is inside the cluster, where it has to be logged
    round: int = ROUND


@dataclass(frozen=True)
class Finding:
    """A case that failed, as small as it could be made. ``round_seed`` makes the round again that had it."""

    surface: str
    round_seed: int
    case: str
    error: str


@dataclass
class Tally:
    """What became of a surface's cases. Times in seconds."""

    surface: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_case: str = ""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def add(self, outcome: str, seconds: float, case: Any) -> None:
        self.cases += 1
        self.outcomes[outcome] += 1
        if seconds > self.slowest:
            self.slowest, self.slowest_case = seconds, repr(case)[:300]

    def report(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(replace(self, outcomes=Counter())), "outcomes": dict(self.outcomes)}


class Watch:
    """Tells after each case whether the target logged an error, or died."""

    def __init__(self, aim: Aim) -> None:
        self._aim = aim
        self._errors = int(aim.errors()["errors"])

    def look(self, may_log: bool) -> None:
        now = self._aim.errors()
        assert not now["broken"], f"the front ends of {now['broken']} broke"
        new, self._errors = int(now["errors"]) - self._errors, int(now["errors"])
        if new and not may_log:
            raise AssertionError(f"the target logged {new} errors: {now['said'][-new:][:3]}")


class OneRound:
    """So many cases from one seed."""

    def __init__(self, surface: Surface, watch: Watch, tally: Tally) -> None:
        self._surface = surface
        self._watch = watch
        self._tally = tally
        self._last: tuple[str, str] | None = None

    def run(self, round_seed: int, count: int) -> None:
        """Adds to the tally, and a finding if a case failed."""

        failed_at = math.inf

        def case(value: Any) -> None:
            nonlocal failed_at
            began = time.monotonic()
            if began > failed_at + SHRINK_SECONDS:
                return  # the smallest one so far will do
            try:
                outcome = self._surface.run(value)
                taken = time.monotonic() - began
                self._watch.look(self._surface.may_log)
                assert taken < SLOW_SECONDS, f"it took {taken:.1f} s"
            except TimeoutError as error:
                self._tally.add("HUNG", time.monotonic() - began, value)
                self._last = repr(value), "no answer in time"
                raise HungError from error
            except Exception as error:
                failed_at = min(failed_at, time.monotonic())
                self._tally.add("FAILED", time.monotonic() - began, value)
                self._last = repr(value), f"{type(error).__name__}: {error}"
                raise
            self._tally.add(outcome, taken, value)

        test = given(self._surface.cases)(case)
        test = settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )(test)
        began = time.monotonic()
        try:
            seed(round_seed)(test)()
        except (Exception, HungError) as error:
            shown, said = self._last or ("?", repr(error))
            self._tally.findings.append(Finding(self._surface.name, round_seed, shown, said))
        finally:
            self._tally.seconds += time.monotonic() - began


def fuzz(
    surface: Surface, aim: Aim, seeds: Iterable[int], count: int, progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """``count`` cases, each round with a seed of its own, however many of them fail; ends early if the target dies."""
    tally, watch = Tally(surface.name), Watch(aim)
    for each in seeds:
        left = count - tally.cases
        if left <= 0 or not aim.alive() or len(tally.findings) >= 5:
            break
        OneRound(surface, watch, tally).run(each, min(left, surface.round))
        progress(tally)
    return tally
