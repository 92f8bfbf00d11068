"""The simulator against the real thing::

    python -m benchmarks.sim_vs_real [--json] [--runs 3] [--seconds 120] [--seed 1]

Serves one trace with a real gateway in front of the mock workers of ``two_and_two.yaml``, and simulates the same trace
with the same configuration; a few times, each with fresh processes and with a seed that the gateway's brain and the
simulated one share. Compared are times that clients see: from sending to the first token (TTFT), and between tokens
(ITL). A percentile's value is the mean over the runs, since which worker a request goes to hangs on milliseconds: each
run is shown, so that the real thing's distance from itself can be seen.

Takes eight minutes. Ends with 1 if a median or 95th percentile of the simulation is further from the real one than the
bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
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
    """Prefill workers busy for a third of the time, so that some prompts queue; decode batches of 4 or so."""
    return trace.Shape(rate=3.0, seconds=seconds, prefixes=12, shared=(1, 2), tail=(128, 1024), output=(32, 96))


async def real(asked: list[trace.Asked], folder: Path, seed: int) -> results.Summary:
    """One run, with new workers and a new gateway."""
    async with workers(load(CONFIG), folder) as running, running.gateway(seed=seed) as gateway:
        return results.summary(await gateway.send(asked, "trace"))


def simulated(path: Path, seed: int) -> dict[str, Any]:
    """What the simulator says of the trace."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "sim", str(CONFIG), "--trace", str(path)]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--json"], capture_output=True, text=True, timeout=SIM_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the simulation failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def compared(real_runs: list[results.Summary], sim_runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a percentile: means, each run, how far the simulation is off, and the runs from one another."""
    rows = []
    for measure in MEASURES:
        for share in SHARES:
            reals = [getattr(run, measure)[share] for run in real_runs]
            sims = [run[measure][share] for run in sim_runs]
            truth = fmean(reals)
            rows.append(
                {
                    "measure": f"{measure.removesuffix('_ms')} {share}",
                    "held": share in HELD,
                    "real_ms": truth,
                    "sim_ms": fmean(sims),
                    "off": fmean(sims) / truth - 1,
                    "real_runs_ms": reals,
                    "sim_runs_ms": sims,
                }
            )
    return rows


def show(rows: list[dict[str, Any]], reals: list[results.Summary], sims: list[dict[str, Any]]) -> None:
    print(f"{'':9} {'real ms':>9} {'sim ms':>9} {'off':>7}   real runs -> simulated runs, ms")
    for row in rows:
        numbers = f"{row['real_ms']:9.1f} {row['sim_ms']:9.1f} {row['off']:+7.1%}"
        real_ms, sim_ms = ([f"{value:.0f}" for value in row[key]] for key in ("real_runs_ms", "sim_runs_ms"))
        print(f"{row['measure']:9} {numbers}   {' '.join(real_ms)} -> {' '.join(sim_ms)}")
    for number, (run, sim) in enumerate(zip(reals, sims, strict=True)):
        print(
            f"run {number}: {run.requests} requests, {run.failed} failed, sent up to {run.late_ms:.1f} ms late; "
            f"prefix hits {run.prefix_hit_ratio:.3f} -> {sim['prefix_hit_ratio']:.3f}, "
            f"prefill apart {run.apart:.3f} -> {sim['prefilled_apart']:.3f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the trace")
    parser.add_argument("--seed", type=int, default=1, help="of the trace, and of the first run")
    given = parser.parse_args()
    asked = trace.generated(shape(given.seconds), given.seed)
    with tempfile.TemporaryDirectory(prefix="segue-benchmark-") as name:
        folder = Path(name)
        path = folder / "trace.jsonl"
        trace.write(path, asked)
        asked = list(trace.read(path))  # what the simulation reads: whole milliseconds
        sims, reals = [], []
        for seed in range(given.seed, given.seed + given.runs):
            (folder / str(seed)).mkdir()
            sims.append(simulated(path, seed))
            reals.append(asyncio.run(real(asked, folder / str(seed), seed)))
    rows = compared(reals, sims)
    if given.json:
        print(json.dumps({"bar": BAR, "rows": rows, "real": [results.plain(run) for run in reals], "sim": sims}))
    else:
        show(rows, reals, sims)
    failed = any(run.failed for run in reals)
    return int(failed or any(row["held"] and abs(row["off"]) > BAR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
