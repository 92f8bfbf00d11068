"""What fits and how fast it is, by the planner and by NVIDIA's aiconfigurator, which interpolates measurements::

    python -m venv /tmp/peer && /tmp/peer/bin/pip install aiconfigurator==0.12.0
    python -m benchmarks.planner --peer /tmp/peer [--json]

For pairs of a model and a GPU and each tensor parallelism: whether a replica with one sequence of 2,000 prompt and 300
output tokens fits, the time to its first token, and between two later ones. Both read the same config.json, the peer's
own copy. The peer keeps an environment of its own. Ends with 1 if the two name another smallest parallelism that fits.
Takes two minutes; nothing runs on a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.fits import Fit, fits
from orchestrator.core.planning.roofline import Roofline
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.planning import catalogue

PROMPT, OUTPUT = 2000, 300
SIZES = (1, 2, 4, 8)
PAIRS = (
    ("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", "H100-80GB"),
    ("Qwen/Qwen3-32B", "l40s", "L40S"),
    ("Qwen/Qwen3-32B", "a100_sxm", "A100-80GB"),
    ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "H100-80GB"),
    ("meta-llama/Meta-Llama-3.1-405B", "b200_sxm", "B200"),
)
PEER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """One model on so many GPUs. Times in milliseconds, None where it doesn't fit; ``peer`` None where it can't say."""

    model: str
    device: str
    tensor_parallel: int
    fits: bool
    ttft_ms: float | None
    itl_ms: float | None
    peer_fits: bool | None
    peer_ttft_ms: float | None
    peer_itl_ms: float | None


def ours(config: Path, device: str, tensor_parallel: int) -> tuple[float, float] | None:
    """Times to the first token and between tokens in milliseconds; None where it doesn't fit."""
    shape, kind = shape_of(json.loads(config.read_text())), catalogue.builtin().find(device)
    cut, settings = Cut(tensor_parallel), Settings(max_model_len=PROMPT + OUTPUT)
    if not isinstance(fits(shape, cut, kind, settings), Fit):
        return None
    speed = Roofline(shape, cut, kind, settings)
    return 1e3 * speed.prompt(PROMPT).alone, 1e3 * speed.step(1, PROMPT + OUTPUT // 2)


def peers(peer: Path, model: str, system: str, tensor_parallel: int) -> tuple[bool | None, float | None, float | None]:
    """Whether it fits (None: no word of it), and the same times."""
    command = [str(peer / "bin" / "aiconfigurator"), "cli", "estimate", "--model-path", model, "--system", system]
    command += ["--backend", "vllm", "--tp-size", str(tensor_parallel), "--batch-size", "1"]
    command += ["--isl", str(PROMPT), "--osl", str(OUTPUT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS, check=False)
    words = done.stdout + done.stderr
    found = [re.search(rf"{name}:\s+([\d.]+) ms", words) for name in ("TTFT", "TPOT")]
    if found[0] and found[1]:
        return True, float(found[0][1]), float(found[1][1])
    return (False if "OOM" in words else None), None, None


def row(peer: Path, model: str, system: str, device: str, tensor_parallel: int) -> Row:
    (folder,) = peer.glob("lib/python*/site-packages/aiconfigurator_core/model_configs")
    mine = ours(folder / f"{model.replace('/', '--')}_config.json", device, tensor_parallel)
    name = model.rpartition("/")[2].removeprefix("Meta-")
    ttft, itl = mine or (None, None)
    return Row(name, device, tensor_parallel, mine is not None, ttft, itl, *peers(peer, model, system, tensor_parallel))


def smallest(rows: list[Row], peer: bool) -> int | None:
    return min((each.tensor_parallel for each in rows if (each.peer_fits if peer else each.fits)), default=None)


def shown(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("model", "GPU", "TP", "fits", "peer", "TTFT ms", "peer", "between ms", "peer"):
        table.add_column(heading, justify="left" if heading in ("model", "GPU") else "right", no_wrap=True)
    for each in rows:
        fit = ["-" if one is None else "yes" if one else "no" for one in (each.fits, each.peer_fits)]
        times = (each.ttft_ms, each.peer_ttft_ms, each.itl_ms, each.peer_itl_ms)
        cells = ["-" if time is None else f"{time:,.1f}" for time in times]
        table.add_row(each.model, each.device, str(each.tensor_parallel), *fit, *cells)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="the environment that aiconfigurator is installed in")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = [[row(args.peer, *pair, size) for size in SIZES] for pair in PAIRS]
    rows = [each for case in cases for each in case]
    differ = [case[0].model for case in cases if smallest(case, peer=False) != smallest(case, peer=True)]
    if args.json:
        print(json.dumps({"rows": [asdict(each) for each in rows], "differ": differ}, indent=2))
    else:
        Console().print(shown(rows))
        print(f"another smallest parallelism: {', '.join(differ) or 'none'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
