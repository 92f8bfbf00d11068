"""Speeds: a guess that is right in its order of magnitude, learned from what was seen, never absurd."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cost import CostModel, Peers
from orchestrator.core.fit import Line
from orchestrator.core.fleet import Fleet
from orchestrator.core.spec import Device, Role
from orchestrator.core.types import EngineFacts, Load
from tests.core.support import worker

# Llama 3 8B in BF16: 16 GB of weights, 128 KiB of KV a token.
EIGHT_BILLION = EngineFacts(
    block_size=16,
    kv_blocks_total=20_000,
    kv_block_bytes=16 * 131_072,
    max_model_len=131_072,
    max_num_seqs=256,
    weight_bytes=16_060_522_496,
    device=Device.GPU,
)
PROMPTS = (100, 1_000, 10_000)


def noisy(truth: float, rng: Random, sigma: float = 0.05) -> float:
    return truth * math.exp(rng.gauss(0.0, sigma))


class TestGuess:
    def test_an_eight_billion_model_on_a_data_centre_gpu(self) -> None:
        model = CostModel(EIGHT_BILLION)
        per_token = (model.prefill_seconds(2_000) - model.prefill_seconds(1_000)) / 1_000
        assert 2 * 8.03e9 / per_token == pytest.approx(140e12, rel=0.1)  # operations a second
        assert 0.008 < model.step_seconds(1) < 0.025
        assert model.transfer_seconds(10_000) - model.transfer_seconds(0) == pytest.approx(10_000 * 131_072 / 6e9)

    def test_attention_over_what_is_cached_costs_something_and_less_than_computing_it(self) -> None:
        model = CostModel(EIGHT_BILLION)
        fresh, cached, whole = (model.prefill_seconds(*case) for case in ((1_000, 0), (1_000, 30_000), (31_000, 0)))
        assert fresh < cached < 0.2 * whole

    @pytest.mark.parametrize("facts", [None, EngineFacts(16, 100, 0, 512, 8), EngineFacts(0, 0, 0, 1, 1)])
    def test_without_facts_it_is_something_sane(self, facts: EngineFacts | None) -> None:
        model = CostModel(facts)
        assert 0.0 < model.prefill_seconds(1) < model.prefill_seconds(1_000) < 10.0
        assert 0.0 < model.step_seconds(1) < model.step_seconds(100) < 1.0
        assert 0.0 < model.transfer_seconds(1) < model.transfer_seconds(1_000) < 1.0


class TestLearning:
    @pytest.mark.parametrize(
        ("fixed", "per_token"), [(0.006, 5e-5), (0.01, 1e-3), (0.3, 2e-6)], ids=["gpu", "cpu", "all fixed"]
    )
    def test_both_parts_are_found_from_a_guess_that_is_far_off(self, fixed: float, per_token: float) -> None:
        model, rng = CostModel(EIGHT_BILLION), Random(1)
        for _ in range(300):
            tokens = int(math.exp(rng.uniform(3, 10)))
            model.saw_prefill(tokens, noisy(fixed + per_token * tokens, rng))
        for tokens in PROMPTS:
            assert model.prefill_seconds(tokens) == pytest.approx(fixed + per_token * tokens, rel=0.15)
        assert model.prefill.error < 0.15

    def test_steps_are_told_apart_by_how_many_run(self) -> None:
        model, rng = CostModel(), Random(2)
        for _ in range(2_000):
            running = rng.randrange(1, 64)
            model.saw_step(running, noisy(0.02 + 0.001 * running, rng))
        assert model.step_seconds(1) == pytest.approx(0.021, rel=0.1)
        assert model.step_seconds(60) == pytest.approx(0.08, rel=0.1)
        assert model.slowdown_seconds(10) == pytest.approx(0.01, rel=0.15)

    def test_noise_biases_nothing(self) -> None:
        model, rng, offs = CostModel(), Random(7), []
        for number in range(3_000):
            seconds = noisy(0.2, rng, sigma=0.6)
            if number > 500:
                offs.append(math.log(model.prefill_seconds(1_000) / 0.2))
            model.saw_prefill(1_000, seconds)
        assert sum(offs) / len(offs) == pytest.approx(0.0, abs=0.06)

    def test_outliers_move_little(self) -> None:
        model, rng = CostModel(), Random(3)
        for number in range(400):
            seconds = noisy(0.05 + 1e-4 * 1_000, rng)
            model.saw_prefill(1_000, 100.0 * seconds if number % 20 == 19 else seconds)
        assert model.prefill_seconds(1_000) == pytest.approx(0.15, rel=0.2)

    def test_a_worker_that_slows_down_is_believed_soon(self) -> None:
        model, rng = CostModel(), Random(4)
        for slower in (1.0, 10.0):
            for _ in range(60):
                tokens = rng.randrange(100, 4_000)
                model.saw_prefill(tokens, noisy(slower * (0.01 + 1e-4 * tokens), rng))
        assert model.prefill_seconds(2_000) == pytest.approx(2.1, rel=0.3)
        assert model.prefill.error > 0.1  # and it shows that predictions were bad lately

    def test_predictions_of_what_was_never_seen_keep_the_guess_s_shape(self) -> None:
        model = CostModel(EIGHT_BILLION)
        ratio = model.prefill_seconds(10_000) / model.prefill_seconds(1_000)
        for _ in range(100):
            model.saw_prefill(1_000, 0.5)
        assert model.prefill_seconds(1_000) == pytest.approx(0.5, rel=0.05)
        assert model.prefill_seconds(10_000) / model.prefill_seconds(1_000) == pytest.approx(ratio, rel=0.1)


class TestPeers:
    def test_one_that_has_done_nothing_yet_is_as_fast_as_the_others(self) -> None:
        fleet, rng = Fleet(), Random(5)
        used, fresh = (fleet.up(worker(name, Role.SERVE), 0.0) for name in ("used", "fresh"))
        for _ in range(100):
            used.cost.saw_prefill(1_000, noisy(3.0, rng))
        assert fresh.cost.prefill_seconds(1_000) == pytest.approx(3.0, rel=0.1)

    def test_other_hardware_is_no_peer(self) -> None:
        fleet = Fleet()
        cpu = fleet.up(worker("cpu", Role.SERVE), 0.0)
        gpu = fleet.up(worker("gpu", Role.SERVE, device=Device.GPU), 0.0)
        before = gpu.cost.prefill_seconds(1_000)
        for _ in range(100):
            cpu.cost.saw_prefill(1_000, 50.0)
        assert gpu.cost.prefill_seconds(1_000) == before

    def test_a_slow_one_is_told_from_its_peers(self) -> None:
        peers, rng = Peers(), Random(6)
        models = [CostModel(None, peers) for _ in range(4)]
        for _ in range(200):
            for number, model in enumerate(models):
                tokens = rng.randrange(200, 3_000)
                model.saw_prefill(tokens, noisy((3.0 if number == 0 else 1.0) * (0.02 + 1e-4 * tokens), rng))
        slow, *others = (model.prefill_seconds(1_000) for model in models)
        assert slow == pytest.approx(0.36, rel=0.15)
        assert others == pytest.approx([0.12] * 3, rel=0.15)

    def test_slowness_is_forgotten_where_there_is_nothing_to_see(self) -> None:
        peers = Peers()
        slow, *others = (CostModel(None, peers) for _ in range(8))
        for _ in range(50):
            slow.saw_prefill(1_000, 0.5)
            for other in others:
                other.saw_prefill(1_000, 0.1)
        assert slow.prefill_seconds(1_000) > 3 * others[0].prefill_seconds(1_000)
        for _ in range(300):
            slow.idle(1.0)
        assert slow.prefill_seconds(1_000) < 1.5 * others[0].prefill_seconds(1_000)

    def test_a_fleet_forgets_it_of_a_worker_that_reports_idle_and_only_then(self) -> None:
        fleet = Fleet()
        slow, *others = (fleet.up(worker(f"w{number}", Role.SERVE), 0.0) for number in range(8))
        for _ in range(50):
            slow.cost.saw_prefill(1_000, 0.5)
            for other in others:
                other.cost.saw_prefill(1_000, 0.1)
        claim = fleet.claim(slow, "r", 0, 0)
        for second in range(100):
            fleet.reported("w0", Load(running=1), 1, float(second))
        assert slow.cost.prefill_seconds(1_000) > 3 * others[0].cost.prefill_seconds(1_000)
        fleet.left(claim)
        for second in range(100, 400):
            fleet.reported("w0", Load(), 0, float(second))
        assert slow.cost.prefill_seconds(1_000) < 1.5 * others[0].cost.prefill_seconds(1_000)


class TestBusy:
    def test_is_the_share_of_the_newest_time_with_requests_whosever_they_are(self) -> None:
        fleet = Fleet()
        view = fleet.up(worker("w", Role.SERVE), 0.0)
        shares = []
        for second in range(1, 301):
            fleet.reported("w", Load(running=1 if second < 200 else 0), 0, float(second))
            shares.append(view.busy)
        assert shares[0] == 0.0
        assert shares[150] > 0.95
        assert shares[-1] < 0.05
        assert shares[:200] == sorted(shares[:200])

    def test_begins_with_a_claim(self) -> None:
        fleet = Fleet()
        idle, busy = (fleet.up(worker(name, Role.SERVE), 0.0) for name in ("idle", "busy"))
        fleet.claim(busy, "r", 0, 0)
        for name in ("idle", "busy"):
            fleet.reported(name, Load(), 0, 10.0)
        assert idle.busy == 0.0 < busy.busy


ANYTHING = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -1.0, 1e-300, 1e300, 1e-7, 1e5, 0.01])
)


@settings(max_examples=150, deadline=None)
@given(
    seen=st.lists(st.tuples(st.sampled_from([0, 1, 5, 1_000, 1_000_000, 2**40]), ANYTHING), max_size=60),
    guess=st.sampled_from([None, EIGHT_BILLION]),
)
def test_whatever_is_told_predictions_stay_finite_and_above_zero(
    seen: list[tuple[int, float]], guess: EngineFacts | None
) -> None:
    model = CostModel(guess)
    for number, seconds in seen:
        model.saw_prefill(number, seconds, number)
        model.saw_step(number, seconds)
        model.saw_transfer(number, seconds)
        model.idle(0.5)
        for tokens in PROMPTS:
            for predict in (model.prefill_seconds, model.step_seconds, model.transfer_seconds):
                assert 0.0 < predict(tokens) < math.inf
        assert model.prefill_seconds(1_000) < model.prefill_seconds(2_000)


def test_nonsense_teaches_nothing() -> None:
    line = Line(0.1, 0.001)
    for units, seconds in ((-1.0, 1.0), (1.0, -1.0), (1.0, 0.0), (1.0, math.nan), (math.nan, 1.0), (1.0, math.inf)):
        line.saw(units, seconds)
    assert (line.fixed, line.slope, line.seen) == (0.1, 0.001, 0)
