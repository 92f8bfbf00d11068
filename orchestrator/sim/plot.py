"""A run as one HTML file: inline SVG, no script, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from orchestrator.sim.chart import Series, area, bars, lines, log_axis, panel, time_axis, value_axis
from orchestrator.sim.run import Result

_BINS = 60  # of goodput over time
_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1d1d1b; --soft: #5c5c58; --line: #e3e3de;
  --a: #2a6fdb; --b: #c2571a; --c: #2f8f5b; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #20201f; --ink: #ececea; --soft: #a3a39e;
  --line: #363634; --a: #7aa9f7; --b: #f0945c; --c: #6cc795; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 32px 24px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; }
h1 { font-size: 20px; font-weight: 600; margin: 0 0 4px; }
h2 { font-size: 14px; font-weight: 600; margin: 0; }
p { margin: 2px 0 0; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 12px; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; } .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.stroke { fill: none; stroke-width: 2; stroke-linejoin: round; }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 6px; color: var(--soft); font-size: 12px; }
.key i { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin: 0 6px 3px 0; }
"""


def page(result: Result, answer: Mapping[str, Any], title: str) -> str:
    """The whole file; ``answer`` is what ``report.as_json`` made of ``result``."""
    cards = "".join((_first_token(result), _gaps(result), _busy(result), _queues(result), _goodput(result)))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main><h1>{escape(title)}</h1>"
        f"<p>{_summary(answer)}</p>{_tiles(answer)}"
        f'<div class="cards">{cards}</div></main></html>\n'
    )


def _summary(answer: Mapping[str, Any]) -> str:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in answer["outcomes"].items() if count)
    replicas = ", ".join(f"{pool['replicas']:,} {role}" for role, pool in answer["pools"].items())
    seconds = answer["sim_seconds"]
    return f"{answer['requests']:,} requests in {seconds:,.1f} s on {replicas}: {outcomes}"


def _tiles(answer: Mapping[str, Any]) -> str:
    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f} ms"

    slo = answer["slo"]
    tiles = (
        (f"{answer['goodput']:.1%}", f"goodput: within {slo['ttft_ms']:g} ms and {slo['itl_ms']:g} ms a token"),
        (milliseconds(answer["ttft_ms"]["p50"]), "to the first token, median"),
        (milliseconds(answer["ttft_ms"]["p95"]), "to the first token, 95%"),
        (milliseconds(answer["itl_ms"]["p95"]), "between tokens, 95%"),
        (f"{answer['prefix_hit_ratio']:.1%}", f"prefix hits, of {answer['prefix_hit_bound']:.1%} possible"),
        (f"{answer['busy_max_over_mean']:.2f}", "busiest worker over the mean"),
    )
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _first_token(result: Result) -> str:
    values = sorted(result.measure.ttft)
    places = sorted({round(n * (len(values) - 1) / 400) for n in range(401)}) if values else []
    points = [(1e3 * max(values[place], 1e-6), (place + 1) / len(values)) for place in places]
    return _curve("Time to first token", points, 1e3 * result.measure.slo.ttft, "of requests that got one")


def _gaps(result: Result) -> str:
    points = [(1e3 * seconds, share) for seconds, share in result.measure.gaps.curve()]
    return _curve("Time between tokens", points, 1e3 * result.measure.slo.itl, "of all gaps")


def _curve(title: str, points: list[tuple[float, float]], slo: float, of: str) -> str:
    if not points:
        return panel(title, "nothing to show", "", ())
    across = log_axis(points[0][0], points[-1][0], "ms")
    up = value_axis(1.0, percent=True)
    drawn = lines((Series("share", points, "a"),), across, up, steps=True, mark=slo)
    return panel(title, f"Share {of} that is not above it. Dashed: the objective.", drawn, ())


def _busy(result: Result) -> str:
    groups = []
    for role in dict.fromkeys(worker.info.role for worker in result.workers):
        busy = sorted((worker.busy for worker in result.workers if worker.info.role is role), reverse=True)
        groups.append((str(role), busy))
    drawn = bars(groups, value_axis(max(max(busy) for _, busy in groups) or 1.0, unit=" s"))
    keys = tuple((name, "abc"[n % 3]) for n, (name, _) in enumerate(groups))
    return panel("Busy time by worker", "Seconds in engine steps, the busiest first. Dashed: the mean.", drawn, keys)


def _queues(result: Result) -> str:
    moments = result.measure.moments
    if not moments:
        return panel("Queues", "the run was too short to show any", "", ())
    series = (
        Series("running", [(moment.at, moment.running) for moment in moments], "a"),
        Series("waiting in engines", [(moment.at, moment.queued) for moment in moments], "c"),
        Series("waiting at gateways", [(moment.at, moment.waiting) for moment in moments], "b"),
    )
    most = max(max(value for _, value in one.points) for one in series)
    drawn = lines(series, time_axis(moments[-1].at), value_axis(max(1, most)))
    return panel("Requests in the system", "At a time.", drawn, tuple((one.name, one.colour) for one in series))


def _goodput(result: Result) -> str:
    moments = result.measure.moments
    if len(moments) < 2:
        return panel("Goodput", "the run was too short to show any", "", ())
    count = -(-len(moments) // _BINS)
    bins = [moments[n : n + count] for n in range(0, len(moments) - count + 1, count)]
    seconds = count * (moments[1].at - moments[0].at)
    arrived = Series("offered", [(one[-1].at, sum(moment.arrived for moment in one) / seconds) for one in bins], "b")
    good = Series("good", [(one[-1].at, sum(moment.good for moment in one) / seconds) for one in bins], "a")
    most = max(value for one in (arrived, good) for _, value in one.points)
    across, up = time_axis(moments[-1].at), value_axis(max(most, 1e-9), unit="/s")
    drawn = area(good, across, up) + lines((arrived, good), across, up, axes=False)
    keys = (("offered", "b"), ("ended within the objectives", "a"))
    return panel("Goodput", "Requests a second, by when they arrived or ended.", drawn, keys)
