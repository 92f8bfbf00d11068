"""A modelled engine: continuous batching in steps, computed only where something changes.

Theory of operation
===================
An engine works in steps, as the mock worker and vLLM do. Between steps it admits what waits, in order of arrival, while
there are seats and KV blocks. One step gives each decoding sequence a token, and computes prompts: a prompt that a step
computes delays everybody's token in that step, and ends in the sequence's first token.

Nothing happens inside a stretch of steps with decoding sequences only, so a stretch is one event, at the step in which
the first of them finishes. A request that arrives, leaves or frees blocks in the middle ends the stretch with the step
that is under way. What lies in between (tokens, their gaps, blocks that fill up) is counted when the stretch ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.core.values import mypyc_attr
from orchestrator.sim.batch import Batch
from orchestrator.sim.clock import Clock, Due
from orchestrator.sim.half import Half
from orchestrator.sim.histogram import Histogram
from orchestrator.sim.settings import EngineSettings

if TYPE_CHECKING:
    from random import Random

SAMPLE_EVERY = 8  # stretches of which the first step ends apart, so that a router can see its time

Report = Callable[[list[Half], list[Half]], None]
"""Told at the end of a step: halves with their first token in it, and halves that it ended."""


@mypyc_attr(free_list_len=1)
class _End(Due):
    """The end of a step or stretch; ``engine`` is None when another end has taken its place."""

    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine: Engine | None = engine

    def happen(self) -> None:
        if self.engine is not None:
            self.engine.ended()


class Engine(Batch):
    """One engine. ``speed``: how much longer its steps take than the settings say.

    ``gaps`` takes the times between tokens. ``busy`` are the seconds spent in steps so far.
    """

    __slots__ = (
        "_chance",
        "_clock",
        "_end",
        "_ends",
        "_gaps",
        "_mixed",
        "_pace",
        "_planned",
        "_report",
        "_since",
        "_stretches",
        "busy",
        "speed",
        "told_always",
        "told_step",
    )

    def __init__(
        self, settings: EngineSettings, speed: float, clock: Clock, rng: Random, gaps: Histogram, report: Report
    ) -> None:
        super().__init__(settings)
        self.speed = speed
        self.busy = 0.0
        self.told_always = False  # report every change of plan, not only what a half has to know of
        self.told_step = -1  # the newest one that somebody takes the time from: the one after it is reported too
        self._clock = clock
        self._chance = rng.random
        self._gaps = gaps
        self._report = report
        self._since = 0.0  # when the step or stretch under way began
        self._pace = 0.0  # seconds a step of it takes; 0 when idle
        self._planned = 0  # steps in it
        self._mixed = False  # one step, with prompts in it
        self._stretches = 0
        self._end = _End(self)  # of the step or stretch under way, or of the newest one
        self._ends = False  # whether it is still to come

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and nothing that anybody may still collect."""
        return not (self.live or self.pinned)

    @property
    def live(self) -> int:
        """Halves that it has taken and that have not ended."""
        return len(self.running) + len(self.waiting) + len(self.fetching)

    def has(self, half: Half) -> bool:
        """Whether this is one of them."""
        return half in self.running or half in self.fetching or half in self.waiting

    def halves(self) -> list[Half]:
        """The same, each."""
        return [*self.running, *self.fetching, *self.waiting]

    # ---- from outside

    def submit(self, half: Half) -> None:
        """Queues a half; it is computed from the next step on."""
        blocked = bool(self.waiting)
        self.waiting = self.waiting or []
        self.waiting.append(half)
        if self._pace == 0.0:
            self._plan()
        elif not blocked and not self._mixed:
            self._cut()

    def abort(self, half: Half) -> None:
        """Ends a half that was submitted and has not ended, without a further word."""
        if half in self.fetching:
            del self.fetching[half]
            self.cache.release(half.run, half.private)
        elif half in self.running:
            self._settle()
            generated = self.generated(half)
            self.leave(half, generated)
            half.emitted += generated
        else:
            self.waiting.remove(half)
        self._room()

    def let_go(self, half: Half) -> None:
        """Nobody has to find the KV of an ended prefill any more; safe to say twice."""
        if self.unpin(half):
            self._room()

    def fetched(self, half: Half, *, complete: bool) -> None:
        """The KV that a half waited for is there, or (not ``complete``) has to be computed here."""
        del self.fetching[half]
        if complete:
            half.moved = half.prompt - half.cached
            half.left = 0
        self.schedule(half)
        self._room()

    def emitted(self, half: Half, at: float) -> int:
        """Tokens that a half had generated at a time in the step or stretch under way, its last one not counted."""
        if half.ended:
            return half.emitted + half.output - 1
        generated = self.generated(half)
        if half.place >= 0 and self._stretching and at > self._since:
            generated += min(self._planned, int((at - self._since) / self._pace))
        return half.emitted + generated

    def slow_down(self, factor: float) -> None:
        """Steps take ``factor`` times as long from the next one on."""
        self.speed *= factor
        self._settle()

    def halt(self) -> None:
        """The engine is gone: nothing of it happens any more."""
        self._settle()
        for half in self.running:
            half.emitted += self.generated(half)
            half.place = -1
        self._end.engine = None
        self._pace = 0.0

    # ---- steps

    def _plan(self) -> None:
        """At a step's boundary: admits what waits, and starts the next step or stretch."""
        if self.waiting:
            self.admit()
        settings = self.settings
        pace = (settings.step_seconds + settings.sequence_seconds * self.decoding) * self.speed
        self._mixed = bool(self.prompts)
        steps = 1
        if self._mixed:
            pace += self._compute() * self.speed
        elif self.decoding:
            self._stretches += 1
            steps = 1 if self._stretches % SAMPLE_EVERY == 1 else self.steps_to_change()
        else:
            self._pace = 0.0
            return
        if settings.noise:
            pace *= 1.0 + settings.noise * (2.0 * self._chance() - 1.0)
        self._pace = pace
        self._since = self._clock.now
        self._end_after(steps)

    def _compute(self) -> float:
        """Takes the next step's share of the prompts; returns the seconds that it adds."""
        settings = self.settings
        budget = max(1, settings.batched_tokens - self.decoding)
        seconds = 0.0
        for half in self.prompts:
            if not half.left:
                continue
            tokens = half.left if half.left < budget else budget
            before = half.prompt - half.left
            seconds += tokens * (settings.prefill_seconds + settings.context_seconds * (before + tokens / 2))
            half.left -= tokens
            budget -= tokens
            if not budget:
                break
        return seconds

    def _end_after(self, steps: int) -> None:
        """The step or stretch under way has so many steps."""
        self._planned = steps
        if self._ends:
            self._end.engine = None
            self._end = _End(self)
        self._ends = True
        clock = self._clock
        ends = self._since + steps * self._pace
        if ends < clock.now:
            ends = clock.now  # by the rounding of sums
        clock.plan(ends, self._end)

    def ended(self) -> None:
        """The step or stretch under way has ended."""
        self._ends = False
        ended = self._count(self._planned)
        firsts = self._begin_decoding(ended) if self.prompts else []
        cache = self.cache
        if cache.private + cache.shared > cache.total:
            for half in self.push_back():
                half.pushed_at = self._clock.now if half.started else None
        if firsts or ended or self.told_always or self.step == self.told_step + 1:
            self._report(firsts, ended)
        self._plan()

    def _begin_decoding(self, ended: list[Half]) -> list[Half]:
        for half in self.prompts:
            if half.pushed_at is not None and not half.left:
                self._gaps.add(self._clock.now - half.pushed_at)
                half.pushed_at = None
        return self.begin_decoding(ended)

    def _count(self, steps: int) -> list[Half]:
        """So many steps have ended; returns the halves that ended with the last of them."""
        self.busy += steps * self._pace
        if self.decoding:
            self._gaps.add(self._pace, steps * self.decoding)
        return self.advance(steps)

    @property
    def _stretching(self) -> bool:
        return self._pace > 0.0 and not self._mixed

    def _cut(self) -> None:
        """Ends the stretch under way with the step under way."""
        if self._planned > 1:
            done = int((self._clock.now - self._since) / self._pace)
            if done + 1 < self._planned:
                self._end_after(done + 1)

    def _settle(self) -> None:
        """Counts the steps of a stretch that have ended by now; the one under way becomes its last."""
        if not self._stretching:
            return
        done = min(self._planned - 1, int((self._clock.now - self._since) / self._pace))
        if done > 0:
            begun = self._since + done * self._pace
            self._count(done)
            self._since = begun
        self._end_after(1)

    def _room(self) -> None:
        """There may be a seat or a block for one that waits, from the next step on."""
        if self._pace == 0.0:
            self._plan()
        elif not self._mixed and (self.waiting or self.prompts):
            self._cut()
