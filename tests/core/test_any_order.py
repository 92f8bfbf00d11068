"""The brain's promises over any order of events: every request ends once, books balance, nothing goes to strangers."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from orchestrator.core import messages as m
from orchestrator.core import policies
from orchestrator.core.brain import Brain
from orchestrator.core.candidates import LEASE_SECONDS, computes, takes
from orchestrator.core.spec import AdmissionSpec, GatewaySpec, ModelSpec, PrefillPlace, Role, RoutingSpec
from orchestrator.core.types import Load
from tests.core.support import worker

MODELS = ("m", "n")
CHAIN = tuple(range(1000, 1032))  # block hashes of one long document; prompts are its beginnings


class AnyOrder(RuleBasedStateMachine):
    """A world that loses workers, answers late, refuses and cancels at will."""

    workers = Bundle("workers")
    wires = Bundle("wires")

    @initialize(
        seed=st.integers(0, 2**16),
        policy=st.sampled_from(sorted(policies.POLICIES)),
        place=st.sampled_from(list(PrefillPlace)),
        most=st.sampled_from([2, 100]),
    )
    def begin(self, seed: int, policy: str, place: PrefillPlace, most: int) -> None:
        self.now = 0.0
        models = [ModelSpec(name, "x", {}, routing=RoutingSpec(policy, prefill=place)) for name in MODELS]
        gateway = GatewaySpec(queue_seconds=10.0, admission=AdmissionSpec(max_queued_requests=most))
        self.brain = Brain(Random(seed), gateway, models)
        self.up: dict[str, str] = {}  # worker -> its model
        self.draining: set[str] = set()
        self.heard: dict[str, float] = {}
        self.model_of: dict[str, str] = {}
        self.used: set[str] = set()
        self.asked: set[str] = set()
        self.ended: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.to_collect: set[str] = set()
        self.wire_of: dict[str, m.StartPrefill | m.StartDecode] = {}
        self.tokens: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.prompts: dict[str, int] = {}
        self.turned_away: set[str] = set()

    def feed(self, event: m.Event) -> None:
        for command in self.brain.step(event, self.now):
            self.take(command)
        self.brain.check()

    def take(self, command: m.Command) -> None:
        match command:
            case m.StartPrefill() | m.StartDecode():
                assert self.up[command.worker_id] == self.model_of[command.request_id], "a wrong or dead worker"
                if isinstance(command, m.StartPrefill) or command.collect is None:
                    assert command.worker_id not in self.draining, "a draining worker"
                    assert self.heard[command.worker_id] + LEASE_SECONDS >= self.now, "a silent worker"
                for choice in (command.decision.on_decode, command.decision.on_prefill):
                    assert choice is None or 0.0 <= choice.score <= 1.0
                assert command.wire_id not in self.used, "a wire id names one half of one placement"
                self.used.add(command.wire_id)
                self.wire_of[command.wire_id] = command
                if command.request_id not in self.turned_away:
                    self.starts[command.request_id] += isinstance(command, m.StartPrefill) or command.collect is None
                if isinstance(command, m.StartDecode) and command.collect:
                    assert command.collect in self.to_collect
                    self.to_collect.discard(command.collect)
            case m.Abort(wire_id, worker_id):
                assert worker_id in self.up
                assert self.wire_of[wire_id].worker_id == worker_id
            case m.Release(prefill_wire_id, worker_id):
                assert worker_id in self.up
                self.to_collect.discard(prefill_wire_id)
            case m.Forget(prefill_wire_id):
                self.to_collect.discard(prefill_wire_id)
            case m.End(report, _):
                self.ended[report.request_id] += 1
                assert report.prompt_tokens == self.prompts[report.request_id], "what was sent counts as prompt"

    @rule(
        target=workers,
        n=st.integers(0, 5),
        role=st.sampled_from([Role.PREFILL, Role.DECODE, Role.SERVE]),
        model=st.sampled_from(MODELS),
        tells=st.booleans(),
        polite=st.booleans(),
    )
    def worker_up(self, n: int, role: Role, model: str, tells: bool, polite: bool) -> str:
        """Under a name that another may have had, or still has: as another kind, or for another model."""
        worker_id = f"w{n}"
        if worker_id in self.up and polite:
            self.down(worker_id)
        self.moved_from(worker_id)
        self.up[worker_id] = model
        self.draining.discard(worker_id)
        self.heard[worker_id] = self.now
        self.feed(m.WorkerUp(worker(worker_id, role, model, kv_events=tells)))
        return worker_id

    @rule(worker_id=consumes(workers))
    def worker_down(self, worker_id: str) -> None:
        self.down(worker_id)

    def moved_from(self, worker_id: str) -> None:
        """What leaves a worker that drains costs no attempt."""
        if worker_id in self.draining:
            self.turned_away |= {c.request_id for c in self.wire_of.values() if c.worker_id == worker_id}

    def down(self, worker_id: str) -> None:
        self.moved_from(worker_id)
        self.up.pop(worker_id, None)
        there = {c.request_id for c in self.wire_of.values() if c.worker_id == worker_id}
        sent = tuple(m.Sent(each, self.sent[each]) for each in sorted(there) if self.sent[each])
        self.feed(m.WorkerDown(worker_id, "gone", sent))

    @rule(worker_id=workers)
    def worker_drains(self, worker_id: str) -> None:
        self.draining.add(worker_id)
        self.feed(m.WorkerDraining(worker_id))

    @rule(worker_id=workers, running=st.integers(0, 20), own=st.none() | st.integers(0, 20), stepped=st.booleans())
    def load(self, worker_id: str, running: int, own: int | None, stepped: bool) -> None:
        if worker_id in self.up:
            self.heard[worker_id] = self.now
            load = Load(running=running, kv_blocks_used=running, kv_blocks_total=100)
            self.feed(m.LoadReported(worker_id, load, own, stepped))

    @rule(
        worker_id=workers,
        stored=st.integers(0, len(CHAIN)),
        removed=st.integers(0, len(CHAIN)),
        cleared=st.booleans(),
    )
    def cache_changes(self, worker_id: str, stored: int, removed: int, cleared: bool) -> None:
        self.feed(m.CacheChanged(worker_id, CHAIN[:stored], CHAIN[max(stored, removed) :], cleared))

    @rule(
        model=st.sampled_from(MODELS),
        blocks=st.integers(0, len(CHAIN)),
        tail=st.integers(1, 15),
        local=st.booleans(),
        in_seconds=st.none() | st.floats(0.1, 20),
        tenant=st.sampled_from(["", "a", "b"]),
        priority=st.integers(-2, 2),
        output=st.integers(0, 100),
        resumable=st.booleans(),
    )
    def arrive(
        self,
        model: str,
        blocks: int,
        tail: int,
        local: bool,
        in_seconds: float | None,
        tenant: str,
        priority: int,
        output: int,
        resumable: bool,
    ) -> None:
        request_id = f"r{len(self.asked)}"
        self.asked.add(request_id)
        self.model_of[request_id] = model
        self.prompts[request_id] = 16 * blocks + tail
        deadline = None if in_seconds is None else self.now + in_seconds
        self.feed(
            m.Arrived(
                request_id,
                model,
                16 * blocks + tail,
                local,
                deadline,
                blocks=CHAIN[:blocks],
                tenant=tenant,
                priority=priority,
                affinity=tenant,
                output_limit=output,
                resumable=resumable,
            )
        )

    def _pick(self, data: st.DataObject, kind: type) -> str | None:
        wires = sorted(w for w, c in self.wire_of.items() if isinstance(c, kind))
        return data.draw(st.sampled_from(wires)) if wires else None

    @rule(data=st.data(), collectable=st.booleans())
    def prefill_ends(self, data: st.DataObject, collectable: bool) -> None:
        if wire_id := self._pick(data, m.StartPrefill):
            if self.wire_of[wire_id].worker_id not in self.up:
                return  # nobody is there to say it
            del self.wire_of[wire_id]
            if collectable:
                self.to_collect.add(wire_id)
            self.feed(m.PrefillEnded(wire_id, collectable, "failed", cached_tokens=0))
            assert wire_id not in self.to_collect, "pinned blocks that nobody will free"

    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        wire_id = self._pick(data, m.StartDecode)
        if wire_id and wire_id not in self.tokens and self.wire_of[wire_id].worker_id in self.up:
            self.tokens.add(wire_id)
            self.sent[self.wire_of[wire_id].request_id] += 1
            self.feed(m.FirstToken(wire_id, 0, 0))

    @rule(data=st.data(), count=st.integers(1, 40))
    def tokens_come(self, data: st.DataObject, count: int) -> None:
        wire_id = self._pick(data, m.StartDecode)
        if wire_id in self.tokens and wire_id in self.used:
            self.sent[self.wire_of[wire_id].request_id] += count

    @rule(data=st.data(), failed=st.booleans())
    def decode_ends(self, data: st.DataObject, failed: bool) -> None:
        if (wire_id := self._pick(data, m.StartDecode)) and self.wire_of[wire_id].worker_id in self.up:
            command = self.wire_of.pop(wire_id)
            self.feed(m.DecodeEnded(wire_id, self.sent[command.request_id], failed, "failed"))

    @rule(data=st.data(), refusal=st.sampled_from(list(m.Refusal)))
    def refuse(self, data: st.DataObject, refusal: m.Refusal) -> None:
        wire_id = self._pick(data, (m.StartPrefill, m.StartDecode))
        if wire_id and wire_id not in self.tokens and self.wire_of[wire_id].worker_id in self.up:
            command = self.wire_of.pop(wire_id)
            if refusal is not m.Refusal.INVALID:
                self.turned_away.add(command.request_id)  # these may be placed any number of times, within their wait
            self.feed(m.Refused(wire_id, refusal, "no"))

    @rule(data=st.data(), complete=st.booleans())
    def cancel(self, data: st.DataObject, complete: bool) -> None:
        if self.asked:
            self.feed(m.Cancelled(data.draw(st.sampled_from(sorted(self.asked))), 0, complete))

    @rule(
        model=st.sampled_from(MODELS),
        policy=st.sampled_from(sorted(policies.POLICIES)),
        place=st.sampled_from(list(PrefillPlace)),
        within=st.none() | st.floats(0.01, 20.0),
    )
    def routed(self, model: str, policy: str, place: PrefillPlace, within: float | None) -> None:
        self.feed(m.ModelRouted(model, policy, (), place, within))

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(m.Tick())
        for session in self.brain._sessions.values():
            assert session.deadline is None or session.deadline > self.now, "outlived its deadline"
            assert session.state != "waiting" or session.place_by > self.now, "waits without a bound"

    @invariant()
    def nothing_ends_twice_or_starts_too_often(self) -> None:
        if hasattr(self, "ended"):
            assert all(count == 1 for count in self.ended.values())
            assert all(count <= 3 for count in self.starts.values())
            assert self.brain.live == len(self.asked) - len(self.ended)

    def a_worker_with_room_leaves_nobody_waiting(self, model: str) -> None:
        worker_id = f"fresh-{model}"
        self.up[worker_id], self.heard[worker_id] = model, self.now
        self.feed(m.WorkerUp(worker(worker_id, Role.SERVE, model)))
        view, first = self.brain.fleet.get(worker_id), self.brain.admission.next(model)
        if first is not None:
            prompt = self.brain._sessions[first.request_id].prompt_tokens
            assert not takes(view, prompt, self.now) or not computes(view, 0), "there is room, and somebody waits"

    def teardown(self) -> None:
        if not hasattr(self, "ended"):
            return
        for model in MODELS:
            self.a_worker_with_room_leaves_nobody_waiting(model)
        for request_id in sorted(self.asked):
            self.feed(m.Cancelled(request_id))
        assert set(self.ended) == self.asked
        assert self.brain.live == 0
        for model in MODELS:
            self.brain.fleet.index(model).check()
            assert not len(self.brain.fleet.index(model)._in_flight), "a prompt is on its way for ever"
        assert all(not view.claims and not view.prefill_tokens and not view.kv_blocks for view in self.brain.fleet)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
