"""A simulated run for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table


def as_tables(answer: Mapping[str, Any]) -> Group:
    """What ``as_json`` made, for a terminal."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, value in _rows(answer):
        table.add_row(what, value)
    return Group(_times(answer), "", table)


def _times(answer: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "p50", "p95", "p99"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, key in (("time to first token", "ttft_ms"), ("between tokens", "itl_ms")):
        table.add_row(name, *(_milliseconds(answer[key][percent]) for percent in ("p50", "p95", "p99")))
    return table


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    outcomes = ", ".join(f"{count} {name}" for name, count in answer["outcomes"].items() if count)
    errors = ", ".join(f"{count} {code}" for code, count in answer["errors"].items())
    slo, hits, bound = answer["slo"], answer["prefix_hit_ratio"], answer["prefix_hit_bound"]
    rows = [
        ("requests", f"{answer['requests']}: {outcomes}" + (f" ({errors})" if errors else "")),
        (
            "goodput",
            f"{answer['goodput']:.1%} of all offered within {slo['ttft_ms']:g} ms to the first token "
            f"and a mean of {slo['itl_ms']:g} ms between tokens",
        ),
        ("prefix hits", f"{hits:.1%} of prompt tokens; one cache without bounds: {bound:.1%}"),
    ]
    for role, pool in answer["pools"].items():
        spread = f"busiest {pool['max_over_mean']:.2f} times the mean of {pool['busy_mean_seconds']:,.1f} s"
        rows.append((f"busy, {role}", f"{spread} over {pool['replicas']} replicas"))
    if answer["prefilled_apart"]:
        rows.append(("prefill apart", f"{answer['prefilled_apart']:.1%} of requests"))
    if answer["retried"] or answer["leases_expired"]:
        resumed = f"{answer['resumed']} streams went on elsewhere"
        if answer["resumed"]:
            resumed += f" (after {answer['pause_ms']['p99']:,.0f} ms, p99)"
        rows.append(("faults", f"{answer['retried']} retried, {resumed}, {answer['leases_expired']} leases expired"))
    sim, wall = answer["sim_seconds"], answer["wall_seconds"]
    rows.append(("simulated", f"{sim:,.1f} s in {wall:,.1f} s ({sim / wall if wall else 0:,.1f} times real time)"))
    rows.append(("trace hash", answer["trace_hash"]))
    return rows
