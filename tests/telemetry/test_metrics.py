from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.core.admission import Admission, Ticket
from orchestrator.core.spec import AdmissionSpec, Role
from orchestrator.core.types import Load, RequestReport, WorkerInfo, WorkerState
from orchestrator.telemetry.histogram import StepHistogram
from orchestrator.telemetry.metrics import GatewayMetrics

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
FINISHED = RequestReport(
    "r1",
    "m",
    "finished",
    prefill_worker="p0",
    decode_worker="d0",
    prompt_tokens=100,
    output_tokens=8,
    queue_seconds=0.002,
    prefill_seconds=0.2,
    transfer_seconds=0.03,
    ttft_seconds=0.25,
    total_seconds=1.5,
)


def families(metrics: GatewayMetrics) -> dict[str, Metric]:
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    """The sum over the series that have these labels; None if there are none."""
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


@pytest.fixture
def metrics() -> GatewayMetrics:
    """A gateway that has seen one of everything."""
    counted = GatewayMetrics("g0")
    counted.worker_load("m", "prefill", "p0", Load(1, 0, 4, 64))
    counted.worker_load("m", "decode", "d0", Load(3, 2, 16, 64))
    counted.tokens("m", "decode", "d0", None, 1)
    counted.tokens("m", "decode", "d0", 0.03, 3)
    counted.transfers("m", "decode", "d0", "moved", 4096)
    counted.fleet([WorkerInfo("p0", "m", Role.PREFILL, "a:1", 1), WorkerInfo("d0", "m", Role.DECODE, "a:2", 1)])
    counted.request_finished(FINISHED)
    counted.refused("http", "model_not_found")
    counted.admission(Admission(AdmissionSpec()), ["m"], ["gold"])
    counted.brain.prediction("m", 0.1, -0.05)
    counted.brain.alert("prefix_prediction", "m", True)
    counted.brain.worker_out("m", "decode", "d0", True)
    return counted


def test_names_types_and_labels_are_those_of_the_documented_table(metrics: GatewayMetrics) -> None:
    rows = re.findall(r"^\| `(segue_\w+)` \| (\w+) \| ([^|]+) \|", DOCS.read_text(), flags=re.M)
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}

    served = {}
    for family in families(metrics).values():
        if family.name.endswith("_created"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le", "gateway"}
        served[name] = (family.type, frozenset(labels))
        assert all(sample.labels["gateway"] == "g0" for sample in family.samples)
    assert served == documented


def test_an_ended_sequence_is_counted_where_it_belongs(metrics: GatewayMetrics) -> None:
    assert value(metrics, "segue_requests_total", model="m", outcome="finished") == 1
    assert value(metrics, "segue_ttft_seconds_sum", model="m") == 0.25
    assert value(metrics, "segue_ttft_seconds_bucket", le="0.3") == 1
    assert value(metrics, "segue_ttft_seconds_bucket", le="0.15") == 0
    assert value(metrics, "segue_queue_seconds_sum") == 0.002
    assert value(metrics, "segue_prefill_seconds_sum") == 0.2
    assert value(metrics, "segue_kv_transfer_seconds_sum") == 0.03
    assert value(metrics, "segue_request_seconds_sum") == 1.5
    assert value(metrics, "segue_prompt_tokens_total", pool="prefill", worker="p0") == 100
    assert value(metrics, "segue_prompt_tokens_total", pool="decode") == 0


def test_a_rejected_request_has_an_outcome_and_nothing_it_did_not_reach(metrics: GatewayMetrics) -> None:
    metrics.request_finished(RequestReport("r2", "m", "rejected", prompt_tokens=500, total_seconds=0.01))

    assert value(metrics, "segue_requests_total", outcome="rejected") == 1
    assert value(metrics, "segue_ttft_seconds_count") == 1
    assert value(metrics, "segue_queue_seconds_count") == 1
    assert value(metrics, "segue_prompt_tokens_total") == 100


def test_tokens_of_one_step_share_its_time_and_the_first_has_no_gap(metrics: GatewayMetrics) -> None:
    assert value(metrics, "segue_output_tokens_total", worker="d0") == 4
    assert value(metrics, "segue_inter_token_seconds_count", worker="d0") == 3
    assert value(metrics, "segue_inter_token_seconds_sum", worker="d0") == pytest.approx(0.03)
    assert value(metrics, "segue_inter_token_seconds_bucket", worker="d0", le="0.01") == 3
    assert value(metrics, "segue_inter_token_seconds_bucket", worker="d0", le="0.0075") == 0


def test_loads_are_the_newest_ones(metrics: GatewayMetrics) -> None:
    metrics.worker_load("m", "decode", "d0", Load(1, 0, 48, 64))

    assert value(metrics, "segue_running_requests", worker="d0") == 1
    assert value(metrics, "segue_waiting_requests", worker="d0") == 0
    assert value(metrics, "segue_kv_blocks_used", worker="d0") == 48
    assert value(metrics, "segue_kv_usage_ratio", worker="d0") == 0.75
    assert value(metrics, "segue_kv_blocks_used", worker="p0") == 4


def test_a_worker_that_left_leaves_no_series_and_gets_none_again(metrics: GatewayMetrics) -> None:
    metrics.worker_gone("m", "decode", "d0")
    metrics.worker_gone("m", "prefill", "p0")
    metrics.worker_gone("m", "prefill", "never-seen")
    metrics.request_finished(FINISHED)

    text = metrics.render()[0].decode()
    assert "d0" not in text
    assert "p0" not in text
    assert value(metrics, "segue_requests_total", outcome="finished") == 2
    assert value(metrics, "segue_prompt_tokens_total", pool="", worker="") == 100


def test_transfers_add_up_by_outcome(metrics: GatewayMetrics) -> None:
    metrics.transfers("m", "decode", "d0", "moved", 1000, 2)
    metrics.transfers("m", "decode", "d0", "recomputed", 0)

    assert value(metrics, "segue_kv_transfers_total", outcome="moved") == 3
    assert value(metrics, "segue_kv_transfers_total", outcome="recomputed") == 1
    assert value(metrics, "segue_kv_transfer_bytes_total", worker="d0") == 5096


def test_the_fleet_is_counted_by_state_and_an_emptied_pool_says_zero(metrics: GatewayMetrics) -> None:
    draining = WorkerInfo("d0", "m", Role.DECODE, "a:2", 1, WorkerState.DRAINING)
    metrics.fleet([draining, WorkerInfo("d1", "m", Role.DECODE, "a:3", 1)])

    assert value(metrics, "segue_workers", pool="decode", state="ready") == 1
    assert value(metrics, "segue_workers", pool="decode", state="draining") == 1
    assert value(metrics, "segue_workers", pool="decode", state="dead") == 0
    assert value(metrics, "segue_workers", pool="prefill", state="ready") == 0


def test_two_gateways_share_no_series(metrics: GatewayMetrics) -> None:
    other = GatewayMetrics("g1")
    other.request_finished(FINISHED)

    def series(each: GatewayMetrics) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(s.name, frozenset(s.labels.items())) for f in families(each).values() for s in f.samples}

    assert series(metrics).isdisjoint(series(other))


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=30))
def test_the_fast_histogram_counts_as_prometheus_does(observed: list[tuple[float, int]]) -> None:
    bounds = (0.001, 0.01, 0.1, 1.0)
    fast, slow = StepHistogram(bounds), Histogram("h", "h", buckets=bounds, registry=CollectorRegistry())
    for seconds, times in observed:
        fast.observe(seconds, times)
        for _ in range(times):
            slow.observe(seconds)
    family = HistogramMetricFamily("h", "h", labels=())
    fast.add_to(family, ())

    reference = {(s.name, s.labels.get("le")): s.value for f in slow.collect() for s in f.samples}
    for sample in family.samples:
        assert sample.value == pytest.approx(reference[sample.name, sample.labels.get("le")])
    assert len(family.samples) == len(bounds) + 3


def test_strangers_names_make_no_series(metrics: GatewayMetrics) -> None:
    waiting = Admission(AdmissionSpec())
    metrics.admission(waiting, ["n"], ["gold"])
    for number in range(100):
        waiting.join(Ticket(f"r{number}", "n", f"stranger {number}", 0, 1, 0.0), 0.0)
    waiting.join(Ticket("g", "n", "gold", 0, 1, 0.0), 0.0)
    text = metrics.render()[0].decode()
    assert "stranger" not in text
    assert value(metrics, "segue_queued_requests", model="n", tenant="other") == 100
    assert value(metrics, "segue_queued_requests", model="n", tenant="gold") == 1
