"""The network between gateways and workers: streams, in order and with a delay; what a broken one carried is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.core.values import mypyc_attr
from orchestrator.sim.clock import Clock, Due

if TYPE_CHECKING:
    from random import Random

    from orchestrator.sim.gateway import Gateway
    from orchestrator.sim.half import Half
    from orchestrator.sim.worker import Frame, Worker

RECONNECT_SECONDS = 0.2

NOTHING: Final[dict[Half, int]] = {}  # nothing is put into it


class Link:
    """One gateway's stream with one worker. ``session`` counts openings: what an older one carried is lost.

    ``up``: it carries messages. ``known``: the gateway believes so; it hears of a break later than the worker.
    ``reached``: tokens of each half that had come when the link began to be held.
    """

    __slots__ = (
        "arrives_down",
        "arrives_up",
        "gateway",
        "held_until",
        "index",
        "known",
        "reached",
        "session",
        "up",
        "worker",
        "worker_id",
    )

    def __init__(self, gateway: Gateway, worker: Worker) -> None:
        self.gateway = gateway
        self.worker = worker
        self.worker_id = worker.info.worker_id  # at hand: a gateway names it at each frame
        self.index = worker.index
        self.up = False
        self.known = False
        self.session = 0
        self.held_until = 0.0
        self.reached: Mapping[Half, int] = NOTHING
        self.arrives_up = 0.0  # when the newest message to the gateway gets there
        self.arrives_down = 0.0  # and the newest one to the worker


Delivery = Callable[[Link, int, Any], None]


class _Message(Due):
    """On its way over a link. The receiver has to see that the session is still the link's."""

    __slots__ = ("link", "session")

    link: Link
    session: int


@mypyc_attr(free_list_len=1)
class _Framed(_Message):
    __slots__ = ("frame",)

    def __init__(self, link: Link, frame: Frame) -> None:
        self.link, self.session = link, link.session
        self.frame = frame

    def happen(self) -> None:
        self.link.gateway.framed(self.link, self.session, self.frame)


@mypyc_attr(free_list_len=1)
class _Started(_Message):
    __slots__ = ("half",)

    def __init__(self, link: Link, half: Half) -> None:
        self.link, self.session = link, link.session
        self.half = half

    def happen(self) -> None:
        self.link.worker.take(self.link, self.session, self.half)


class _Other(_Message):
    __slots__ = ("deliver", "what")

    def __init__(self, link: Link, deliver: Delivery, what: Any) -> None:
        self.link, self.session = link, link.session
        self.deliver = deliver
        self.what = what

    def happen(self) -> None:
        self.deliver(self.link, self.session, self.what)


@dataclass(frozen=True, slots=True)
class Weather:
    """``delay`` and up to ``jitter`` seconds each way; shares of load and cache reports that are lost, of load reports
    that come late, and of clients that leave before their end."""

    delay: float = 0.0002
    jitter: float = 0.0001
    lost: float = 0.0
    late: float = 0.0
    leaving: float = 0.0


class Network:
    """Carries messages over links."""

    def __init__(self, clock: Clock, rng: Random, weather: Weather) -> None:
        self.weather = weather
        self.fair = not (weather.lost or weather.late)
        self._clock = clock
        self._delay = weather.delay
        self._jitter = weather.jitter
        self.chance = rng.random

    def frame(self, link: Link, frame: Frame) -> None:
        """Has the link's gateway told (``framed``)."""
        self._up(link, _Framed(link, frame))

    def start(self, link: Link, half: Half) -> None:
        """Has the link's worker take a half."""
        self._down(link, _Started(link, half))

    def to_gateway(self, link: Link, deliver: Delivery, what: Any) -> None:
        """Has ``deliver(link, session, what)`` called at the gateway."""
        self._up(link, _Other(link, deliver, what))

    def to_worker(self, link: Link, deliver: Delivery, what: Any) -> None:
        """Has ``deliver(link, session, what)`` called at the worker."""
        self._down(link, _Other(link, deliver, what))

    def _up(self, link: Link, message: Due) -> None:
        at = self._clock.now + self._delay + self._jitter * self.chance()
        if at < link.arrives_up:
            at = link.arrives_up
        else:
            link.arrives_up = at
        self._clock.plan(at, message)

    def _down(self, link: Link, message: Due) -> None:
        at = self._clock.now + self._delay + self._jitter * self.chance()
        if at < link.arrives_down:
            at = link.arrives_down
        else:
            link.arrives_down = at
        self._clock.plan(at, message)

    def hold(self, link: Link, seconds: float) -> None:
        """Nothing gets through for so long; what is sent arrives afterwards, in order."""
        until = self._clock.now + seconds
        link.held_until = max(link.held_until, until)
        link.arrives_up = max(link.arrives_up, until)
        link.arrives_down = max(link.arrives_down, until)

    @property
    def settle_seconds(self) -> float:
        """After which every message is where it should be."""
        return 4 * (self._delay + self._jitter) + 1e-6

    def lost(self) -> bool:
        """Whether a report is lost on its way."""
        return self.weather.lost > 0.0 and self.chance() < self.weather.lost

    def late(self) -> bool:
        """Whether a report falls behind those after it."""
        return self.weather.late > 0.0 and self.chance() < self.weather.late
