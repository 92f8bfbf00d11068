"""What a soak measured, as a page: one chart a measure, one line a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from orchestrator.sim.chart import Series, lines, panel, time_axis, value_axis

Lines = Mapping[str, Sequence[tuple[float, float]]]

_COLOURS = "abcdefgh"
_STYLE = """
:root { --a: #2a6fdb; --b: #c2571a; --c: #2f8f5b; --d: #8a3ffc; --e: #b28600; --f: #9f1853; --g: #007d79;
  --h: #6f6f6f; }
body { margin: 24px; font: 14px/1.45 system-ui, sans-serif; background: #fff; color: #1d1d1b; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 16px; }
h1 { font-size: 20px; } h2 { font-size: 14px; margin: 0; } svg text { fill: #5c5c58; font-size: 11px; }
.grid { stroke: #e3e3de; } .stroke { fill: none; stroke-width: 1.5; }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 12px; }
.key i { display: inline-block; width: 12px; height: 3px; margin: 0 6px 3px 0; }
"""
_UNITS = {"memory": "MB, resident"}


def page(path: Path, of: Mapping[str, Lines], seconds: float, title: str) -> None:
    """Writes it."""
    cards = "".join(_card(measure, processes, seconds) for measure, processes in of.items())
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    path.write_text(f'<!doctype html><html lang="en">{head}<h1>{escape(title)}</h1><div class="cards">{cards}</div>\n')


def _card(measure: str, processes: Lines, seconds: float) -> str:
    drawn = [
        Series(name, points, _COLOURS[number % len(_COLOURS)])
        for number, (name, points) in enumerate(sorted(processes.items()))
    ]
    most = max((value for each in drawn for _, value in each.points), default=1.0)
    up = value_axis(max(most, 1.0))
    return panel(
        measure,
        _UNITS.get(measure, ""),
        lines(drawn, time_axis(seconds), up),
        [(one.name, one.colour) for one in drawn],
    )
