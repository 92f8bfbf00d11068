"""A worker: its engine, and the session side of it, which gives each gateway a frame a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.core.messages import Refusal
from orchestrator.core.types import Load, WorkerInfo
from orchestrator.core.values import mypyc_attr
from orchestrator.sim.clock import Clock
from orchestrator.sim.engine import Engine
from orchestrator.sim.half import Half
from orchestrator.sim.histogram import Histogram
from orchestrator.sim.network import RECONNECT_SECONDS, Link, Network
from orchestrator.sim.offer import Offer
from orchestrator.sim.settings import EngineSettings

if TYPE_CHECKING:
    from random import Random

HEARTBEAT_SECONDS = 1.0


@mypyc_attr(free_list_len=1)
class Frame:
    """What a worker has to say at the end of a step. ``firsts`` and ``ended`` are all gateways' halves.

    ``own``: how many of the requests in ``load`` are whose, by gateway.
    """

    # Most frames have few of these, and a class's attributes cost a frame nothing.
    firsts: Sequence[Half] = ()
    ended: Sequence[Half] = ()
    refused: Sequence[tuple[Half, Refusal, str]] = ()
    failed: Sequence[Half] = ()
    removed: Sequence[int] = ()
    stored: Sequence[int] = ()
    stepped = False
    draining = False

    def __init__(self, load: Load, own: tuple[int, ...]) -> None:
        self.load = load
        self.own = own


class Worker:
    """One replica."""

    __slots__ = (
        "_chance",
        "_clock",
        "_gaps",
        "_heard_at",
        "_max_live",
        "_network",
        "_own",
        "_stepped_running",
        "alive",
        "busy_before",
        "draining",
        "engine",
        "expired",
        "failing",
        "index",
        "info",
        "links",
        "settings",
        "speed",
    )

    def __init__(
        self,
        index: int,
        info: WorkerInfo,
        settings: EngineSettings,
        clock: Clock,
        network: Network,
        rng: Random,
        gaps: Histogram,
    ) -> None:
        # Natively in this order in memory: what each beat looks at is together.
        self.alive = False
        self._heard_at = 0.0
        self._clock = clock
        self.index = index
        self.info = info
        self.settings = settings
        self.draining = False
        self.links: list[Link] = []
        self.busy_before = 0.0  # of engines that are gone
        self.expired = 0  # leases that nobody ended
        self.failing = 0.0  # share of halves that end with an error
        self.speed = 1.0 + settings.spread * (2.0 * rng.random() - 1.0)
        self._network = network
        self._gaps = gaps
        self._chance = rng
        self._max_live = max(1024, 16 * settings.facts.max_num_seqs)
        self._own: list[int] = []
        self.start()

    @property
    def busy(self) -> float:
        """Seconds spent in engine steps."""
        return self.busy_before + self.engine.busy

    def connect(self, link: Link) -> None:
        """A gateway may open sessions over this link."""
        self.links.append(link)
        self._own.append(0)
        self.engine.told_always = len(self.links) > 1

    # ---- life

    def start(self) -> None:
        """A new engine; sessions are still closed."""
        self.engine = Engine(self.settings, self.speed, self._clock, self._chance, self._gaps, self._stepped_to)
        self.alive = True
        self.draining = False
        self.engine.told_always = len(self.links) > 1
        self._stepped_running = -1

    def end(self) -> None:
        """The engine and all sessions are gone."""
        self.engine.halt()
        self.busy_before += self.engine.busy
        self.alive = False
        self._own = [0] * len(self.links)
        for link in self.links:
            link.up = False

    def drain(self) -> None:
        """Takes nothing new from here on."""
        self.draining = True
        self._send(self._frame())

    def snapshot(self, link: Link) -> Frame:
        """The first frame of a session: all that is in the cache."""
        frame = self._frame()
        self._own[link.gateway.index] = 0
        frame.stored = self.engine.cache.contents()
        return frame

    def broken(self, link: Link) -> None:
        """A session is over: what came over it is aborted, once the engine's step is told of."""
        link.up = False
        self._clock.after(0.0, self._drop, link)

    def _drop(self, link: Link) -> None:
        if not self.alive:
            return
        for half in [half for half in self.engine.halves() if half.gateway is link.gateway]:
            self._abort(half)

    # ---- from gateways

    def take(self, link: Link, session: int, half: Half) -> None:
        """A half to run."""
        if not (link.up and session == link.session):
            return
        refusal = self._refusal(half)
        if refusal is not None:
            frame = self._frame()
            frame.refused = ((half, *refusal),)
            self._network.frame(link, frame)
            return
        if self.failing and self._network.chance() < self.failing:
            if half.collect is not None:
                self._let_go(half.collect)
            frame = self._frame()
            frame.failed = (half,)
            self._network.frame(link, frame)
            return
        self._own[link.gateway.index] += 1
        self.engine.submit(half)

    def take_abort(self, link: Link, session: int, half: Half) -> None:
        """A half that is not wanted any more."""
        if link.up and session == link.session and self.engine.has(half):
            self._abort(half)
            self._send(self._frame())

    def take_release(self, link: Link, session: int, half: Half) -> None:
        """A prefill half that nobody will collect: its own worker is told."""
        if link.up and session == link.session:
            self._let_go(half)

    def output_of(self, offer: Offer) -> int:
        """Tokens that a request gets here in all."""
        return min(offer.output_tokens, self.settings.facts.max_model_len - offer.prompt_tokens)

    def _refusal(self, half: Half) -> tuple[Refusal, str] | None:
        facts = self.settings.facts
        if self.draining:
            return Refusal.DRAINING, f"{self.info.worker_id} is draining"
        if half.prompt >= facts.max_model_len:
            return Refusal.INVALID, f"{half.prompt} prompt tokens are over the model's {facts.max_model_len}"
        half.output = min(half.output, facts.max_model_len - half.prompt)
        if -(-(half.prompt + half.output) // facts.block_size) > facts.kv_blocks_total:
            return Refusal.INVALID, f"{half.prompt} + {half.output} tokens are more than the engine's KV cache holds"
        if self.engine.live >= self._max_live:
            return Refusal.BUSY, f"{self.info.worker_id} has {self.engine.live} requests"
        return None

    def _abort(self, half: Half) -> None:
        self._own[half.gateway.index] -= 1
        self.engine.abort(half)
        if half.collect is not None and not half.moved:
            self._let_go(half.collect)

    # ---- from the engine

    def _stepped_to(self, firsts: list[Half], ended: list[Half]) -> None:
        for half in ended:
            self._own[half.gateway.index] -= 1
            if half.offers:
                self._clock.after(self.settings.lease_seconds, self._lease_ends, (self.engine, half))
        engine = self.engine
        running = len(engine.running)
        frame = self._frame()
        frame.firsts, frame.ended = firsts, ended
        if engine.step == engine.told_step + 1 or running != self._stepped_running:
            frame.stepped = True
            engine.told_step, self._stepped_running = engine.step, running
        self._send(frame)

    def fetch(self, half: Half) -> None:
        """Fetches the KV of a half's prefill, or finds out that it is gone."""
        source = half.collect
        assert source is not None  # noqa: S101  (the engine asks for these only)
        there = source in source.worker.engine.pinned and source.worker.alive
        settings = self.settings
        seconds = settings.handover_seconds + half.private * settings.block_seconds if there else 0.0
        self._clock.after(seconds, self._fetched, (self.engine, half, source.worker.engine))

    def _fetched(self, what: tuple[Engine, Half, Engine]) -> None:
        engine, half, source = what
        if engine is not self.engine or not self.alive or half not in engine.fetching:
            return
        prefill = half.collect
        assert prefill is not None  # noqa: S101
        complete = prefill.worker.alive and prefill.worker.engine is source and prefill in source.pinned
        if complete:
            source.let_go(prefill)
        engine.fetched(half, complete=complete)

    def _lease_ends(self, what: tuple[Engine, Half]) -> None:
        engine, half = what
        if engine is self.engine and self.alive and half in engine.pinned:
            self.expired += 1
            engine.let_go(half)

    @staticmethod
    def _let_go(half: Half) -> None:
        if half.worker.alive:
            half.worker.engine.let_go(half)

    # ---- to gateways

    def beat(self) -> None:
        """Says something, if nothing was said for a while."""
        if self.alive and self._clock.now - self._heard_at > HEARTBEAT_SECONDS - 0.1:
            self._send(self._frame())

    def _frame(self) -> Frame:
        engine = self.engine
        cache = engine.cache
        load = Load(
            len(engine.running), len(engine.waiting) + len(engine.fetching), cache.private + cache.shared, cache.total
        )
        frame = Frame(load, tuple(self._own))
        if self.draining:
            frame.draining = True
        return frame

    def _send(self, frame: Frame) -> None:
        cache = self.engine.cache
        if cache.stored or cache.removed:
            frame.removed, frame.stored = cache.take_changes()
        self._heard_at = self._clock.now
        network = self._network
        for link in self.links:
            if not link.up:
                continue
            if network.weather.lost and (frame.stored or frame.removed) and network.lost():
                # A stream loses nothing in its middle: it breaks, and opens again with a snapshot.
                self.broken(link)
                link.gateway.lose(link, "the stream broke", RECONNECT_SECONDS)
            else:
                network.frame(link, frame)
