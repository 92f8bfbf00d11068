"""The long form: ``python -m tests.chaos --requests 10000 --seed 1``. Exit 0 if every promise was kept, else 1.

``--engines`` has real ones of a tiny model. What they say without faults is recorded first, and what they say under
faults is held to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.campaign import LOSSES, Campaign, Outcome, codes, pauses
from tests.chaos.clients import Clients, in_quiet
from tests.chaos.faults import ENGINE_KINDS, KINDS
from tests.chaos.ground import MODEL, ground
from tests.chaos.transcript import Ask, asks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two faults, on average")
    parser.add_argument("--at-a-time", type=int, default=32)
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--engines", action="store_true", help="real engines (1 to 2 GB each) instead of mocks")
    parser.add_argument("--longest", type=int, default=64, help="tokens of the longest answers")
    parser.add_argument(
        "--most-seconds", type=float, default=1800.0, help="after which what is not through is given up"
    )
    parser.add_argument("--only", default="", help="kinds of faults whose names have this in them")
    parser.add_argument("--home", default="", help="where logs go, which stay; without it they do not")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a Ray on loopback is found there only so
    kinds = tuple(kind for kind in (ENGINE_KINDS if args.engines else KINDS) if args.only in kind.name)
    with (
        tempfile.TemporaryDirectory(prefix="chaos") as passing,
        ground(Path(args.home or passing), args.prefill, args.decode, args.nodes, engines=args.engines) as there,
    ):
        wanted: Iterable[Ask] = asks(args.requests, args.seed, args.longest)
        if args.engines:
            clients = Clients(there.cluster.url, there.cluster.grpc, MODEL)
            wanted = asyncio.run(in_quiet(clients, list(wanted), args.at_a_time))
        campaign = Campaign(there, args.seed, args.every, kinds, first=kinds, most_seconds=args.most_seconds)
        outcome = asyncio.run(campaign.run(wanted, args.at_a_time))
    told = report(outcome)
    if args.json:
        print(json.dumps(told, indent=2))  # noqa: T201
    else:
        show(told)
    return 1 if outcome.wrong else 0


def report(outcome: Outcome) -> dict[str, Any]:
    """All of it, as JSON has it."""
    faults = Counter(each.fault.kind.name for each in outcome.struck)
    return {
        "seconds": round(outcome.seconds, 1),
        "requests": len(outcome.transcripts),
        "without exactly one outcome": sum("outcomes" in each for each in outcome.wrong),
        "with wrong tokens": sum("other tokens" in each or " finished " in each for each in outcome.wrong),
        "left": outcome.accounts.left() if outcome.accounts.workers else ["the accounts could not be read"],
        "outcomes": codes(outcome),
        "connected again": sum(len(each.attempts) - 1 for each in outcome.transcripts),
        "tokens": sum(attempt.output_tokens for each in outcome.transcripts for attempt in each.attempts),
        "faults": {name: each for kind, count in sorted(faults.items()) for name, each in _rows(outcome, kind, count)},
        "losses": [each.attempts[-1].said for each in outcome.transcripts if each.outcome in LOSSES][:20],
        "wrong": outcome.wrong,
    }


def _rows(outcome: Outcome, kind: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    alone = sum(not each.left for each in outcome.struck if each.fault.kind.name == kind)
    yield kind, {"count": count - alone, **_spread(pauses(outcome, kind))}
    if alone:
        yield f"{kind}, nobody left", {"count": alone, **_spread(pauses(outcome, kind, alone=True))}


def _spread(seconds: list[float]) -> dict[str, float | int]:
    if not seconds:
        return {"streams": 0}
    at = {"p50": 0.5, "p99": 0.99}
    shares = {name: round(seconds[min(len(seconds) - 1, int(part * len(seconds)))], 2) for name, part in at.items()}
    return {"streams": len(seconds), **shares, "most": round(seconds[-1], 2)}


def show(told: dict[str, Any]) -> None:
    console = Console()
    table = Table("fault", "times", "streams that paused", "p50 s", "p99 s", "most s", title="faults")
    for name, each in told["faults"].items():
        table.add_row(
            name, *(str(each.get(key, "")) for key in ("count", "streams", "p50", "p99", "most"))
        )  # fmt: skip
    console.print(table)
    table = Table("of", "count", title=f"{told['requests']} requests in {told['seconds']} s")
    for name, count in sorted(told["outcomes"].items(), key=lambda each: -each[1]):
        table.add_row(name, str(count))
    for name in ("connected again", "tokens", "without exactly one outcome", "with wrong tokens"):
        table.add_row(name, str(told[name]))
    table.add_row("left behind", "; ".join(told["left"]) or "0")
    console.print(table)
    for each in told["losses"]:
        console.print(each)
    for each in told["wrong"][:40]:
        console.print(f"[red]{each}[/red]")


if __name__ == "__main__":
    sys.exit(main())
