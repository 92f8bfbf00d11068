"""The simulator against the real thing::

    python -m benchmarks.sim_vs_real [--json] [--runs 2] [--seconds 75] [--seed 1]

Serves one trace with a real gateway in front of the mock workers of ``two_and_two.yaml``, each time with fresh
processes, and simulates the same trace with the same configuration. Both are told of by their clients: the time from
sending to the first token (TTFT), and the times between tokens (ITL), over all requests of all runs. The real runs also
show how far the real thing is from itself.

Ends with 1 if a median or 95th percentile of the simulation is further from the real one than the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.live import results, trace
from benchmarks.live.stack import workers
from orchestrator.config import load

BAR = 0.09
CONFIG = Path(__file__).with_name("two_and_two.yaml")
MEASURES = ("ttft_ms", "itl_ms")
SHARES = ("p50", "p95", "p99")
HELD = ("p50", "p95")  # to the bar
SIM_SECONDS = 120.0


def shape(seconds: float) -> trace.Shape:
    """Prefill workers busy for about half of the time, so that prompts queue; decode batches of a few."""
    return trace.Shape(rate=4.0, seconds=seconds, prefixes=16, shared=(1, 4), tail=(64, 768), output=(32, 96))


async def real(asked: list[trace.Asked], folder: Path, run: int) -> list[results.Served]:
    """One run, with new workers and a new gateway."""
    async with workers(load(CONFIG), folder) as running, running.gateway() as gateway:
        return await gateway.send(asked, "trace", salt=run)


def simulated(path: Path, seed: int) -> dict[str, Any]:
    """What the simulator says of the trace."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "sim", str(CONFIG), "--trace", str(path)]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--json"], capture_output=True, text=True, timeout=SIM_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the simulation failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def compared(runs: list[list[results.Served]], sim: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a measure: all real requests together, each run, the simulation; deviations as shares of the real value."""
    together = results.summary([each for run in runs for each in run])
    apart = [results.summary(run) for run in runs]
    rows = []
    for measure in MEASURES:
        for share in SHARES:
            truth = getattr(together, measure)[share]
            each = [getattr(summary, measure)[share] for summary in apart]
            rows.append(
                {
                    "measure": f"{measure.removesuffix('_ms')} {share}",
                    "held": share in HELD,
                    "real_ms": truth,
                    "runs_ms": each,
                    "sim_ms": sim[measure][share],
                    "off": sim[measure][share] / truth - 1,
                    "noise": (max(each) - min(each)) / truth,
                }
            )
    return rows


def show(rows: list[dict[str, Any]], runs: list[results.Summary], sim: dict[str, Any]) -> None:
    print(f"{'':9} {'real ms':>9} {'sim ms':>9} {'off':>7}   {'real runs ms':24} {'apart by':>8}")
    for row in rows:
        each = ", ".join(f"{value:.1f}" for value in row["runs_ms"])
        numbers = f"{row['real_ms']:9.1f} {row['sim_ms']:9.1f} {row['off']:+7.1%}"
        print(f"{row['measure']:9} {numbers}   {each:24} {row['noise']:8.1%}")
    for number, run in enumerate(runs):
        print(
            f"run {number}: {run.requests} requests, {run.failed} failed, prefix hits {run.prefix_hit_ratio:.3f}, "
            f"{run.apart:.0%} apart, sent up to {run.late_ms:.1f} ms late"
        )
    print(f"simulation: {sim['requests']} requests, prefix hits {sim['prefix_hit_ratio']:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--runs", type=int, default=2, help="of the real thing")
    parser.add_argument("--seconds", type=float, default=75.0, help="length of the trace")
    parser.add_argument("--seed", type=int, default=1, help="of the trace and the simulation")
    given = parser.parse_args()
    asked = trace.generated(shape(given.seconds), given.seed)
    with tempfile.TemporaryDirectory(prefix="segue-benchmark-") as name:
        folder = Path(name)
        path = folder / "trace.jsonl"
        trace.write(path, asked)
        sim = simulated(path, given.seed)
        asked = list(trace.read(path))  # what the simulation read: whole milliseconds
        runs = []
        for run in range(given.runs):
            (folder / str(run)).mkdir()
            runs.append(asyncio.run(real(asked, folder / str(run), run)))
    rows = compared(runs, sim)
    summaries = [results.summary(run) for run in runs]
    if given.json:
        print(json.dumps({"bar": BAR, "rows": rows, "runs": [results.plain(each) for each in summaries], "sim": sim}))
    else:
        show(rows, summaries, sim)
    failed = any(each.failed for each in summaries)
    return int(failed or any(row["held"] and abs(row["off"]) > BAR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
