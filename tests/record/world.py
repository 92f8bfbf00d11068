"""Brains with a recorder beside them: in any order of events, and in one that a reader can follow."""

from __future__ import annotations

from pathlib import Path
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from orchestrator.config import dumps
from orchestrator.core import messages as m
from orchestrator.core import policies
from orchestrator.core.brain import Brain
from orchestrator.core.spec import (
    AdmissionSpec,
    ClusterSpec,
    GatewaySpec,
    ModelSpec,
    PrefillPlace,
    Role,
    RoutingSpec,
)
from orchestrator.core.types import Load
from orchestrator.record.recorder import Recorder
from orchestrator.record.recording import Header, Recording
from orchestrator.record.replay import Replayed, replay
from tests.core.support import worker
from tests.core.test_any_order import MODELS, AnyOrder


class Recorded:
    """A brain whose steps are recorded, as a gateway's are."""

    def __init__(self, path: Path, spec: ClusterSpec, seed: int) -> None:
        self.brain = Brain.of(spec, Random(seed))
        self.recorder = Recorder(str(path), Header("0.1.0", "gw-0", 1, seed, 1_700_000_000.0, 0.0, dumps(spec)), fail)

    def step(self, event: m.Event, now: float) -> list[m.Command]:
        commands = self.brain.step(event, now)
        self.recorder.note(now, event, commands)
        return commands


def fail(reason: str) -> None:
    raise AssertionError(reason)


def replayed(path: Path) -> Replayed:
    with Recording(path) as recording:
        return replay(recording)


class AnyRecordedOrder(AnyOrder):
    """Replays each of its worlds when it is over; ``folder`` keeps their recordings."""

    folder: Path

    @initialize(
        seed=st.integers(0, 2**64),
        policy=st.sampled_from(sorted(policies.POLICIES)),
        place=st.sampled_from(list(PrefillPlace)),
        most=st.sampled_from([2, 100]),
    )
    def begin(self, seed: int, policy: str, place: PrefillPlace, most: int) -> None:
        super().begin(seed, policy, place, most)
        models = tuple(ModelSpec(name, "x", {}, routing=RoutingSpec(policy, prefill=place)) for name in MODELS)
        gateway = GatewaySpec(queue_seconds=10.0, admission=AdmissionSpec(max_queued_requests=most))
        self.path = self.folder / str(len(list(self.folder.iterdir())))
        self.recorded = Recorded(self.path, ClusterSpec("test", models, gateway=gateway), seed)
        self.brain = self.recorded.brain

    def feed(self, event: m.Event) -> None:
        for command in self.recorded.step(event, self.now):
            self.take(command)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "recorded"):
            self.recorded.recorder.close()
            outcome = replayed(self.path)
            assert outcome.difference is None, outcome.difference
            assert outcome.end == "closed"


APART = ClusterSpec("test", (ModelSpec("m", "x", {}, routing=RoutingSpec("cost", prefill=PrefillPlace.APART)),))
ARRIVALS = {"chatcmpl-one-0a1b2c3d": "one", "chatcmpl-two-4e5f6a7b": "two", "chatcmpl-tow-0c1d2e3f": ""}


def an_hour(path: Path) -> list[m.Command]:
    """One request that is prefilled, handed over and answered; one that loses its worker; one that is cut off."""
    one, two, three = ARRIVALS
    world = Recorded(path, APART, seed=7)
    out: list[m.Command] = []

    def feed(now: float, event: m.Event) -> list[m.Command]:
        out.extend(commands := world.step(event, now))
        return commands

    for worker_id, role in (("p0", Role.PREFILL), ("p1", Role.PREFILL), ("d0", Role.DECODE)):
        feed(1.0, m.WorkerUp(worker(worker_id, role)))
    world.recorder.known_as(one, "one")
    (first,) = feed(2.0, m.Arrived(one, "m", 40, blocks=(11, 12), tenant="t", priority=-1, output_limit=9))
    feed(2.1, m.LoadReported(first.worker_id, Load(), 1))
    (decode,) = feed(2.5, m.PrefillEnded(first.wire_id, True, cached_tokens=16))
    feed(2.75, m.FirstToken(decode.wire_id, 16, 24))
    world.recorder.known_as(two, "two")
    (second,) = feed(3.0, m.Arrived(two, "m", 80, deadline=60.0))
    feed(3.25, m.WorkerDown(second.worker_id, "its process died"))
    feed(4.0, m.DecodeEnded(decode.wire_id, 5))
    for view in world.brain.fleet:
        feed(4.5, m.LoadReported(view.info.worker_id, Load(), 0))
    feed(5.0, m.Arrived(three, "m", 8))
    feed(5.5, m.Cancelled(two, 0))
    feed(5.75, m.Tick())
    world.recorder.close()
    return out
