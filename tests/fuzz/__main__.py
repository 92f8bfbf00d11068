"""``make fuzz``: at least 100,000 cases against a gateway, its workers' ports and a controller's.

python -m tests.fuzz                        all surfaces
python -m tests.fuzz --only frames --seed 7 --round       one round again, as a finding names it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from random import SystemRandom
from tempfile import mkdtemp
from typing import Any

from hypothesis.errors import HypothesisWarning

from tests.fuzz.aim import Aim, aimed
from tests.fuzz.engine import Finding, Tally, fuzz
from tests.fuzz.idlers import BOUND_SECONDS, Idlers
from tests.fuzz.schema_cases import document
from tests.fuzz.surfaces import SHARES, surfaces

CASES = 100_000
MINUTES = 45.0
LONGEST_GAP_SECONDS = 5.0  # on a busy machine; what an unbounded input costs would be more
P99_GAP_SECONDS = 0.25
KEPT_FDS = 20
KEPT_BYTES = 400 << 20


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begins no round after so many")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31))
    parser.add_argument(
        "--only", choices=sorted(SHARES), action="append", help="this surface; may be given several times"
    )
    parser.add_argument("--round", action="store_true", help="only the round of this seed")
    parser.add_argument("--json", metavar="FILE", help="the report as JSON as well")
    return parser.parse_args()


def show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Run:
    """One run against one target."""

    def __init__(self, aim: Aim, chosen: argparse.Namespace) -> None:
        self._aim = aim
        self._chosen = chosen
        self._until = time.monotonic() + 60 * chosen.minutes
        self.tallies: list[Tally] = []

    def surfaces(self) -> None:
        """Each in turn."""
        names = [name for name in SHARES if name in (self._chosen.only or SHARES)]
        whole = sum(SHARES[name] for name in names)
        makers = surfaces(self._aim)
        for name in names:
            if not self._aim.alive():
                return
            surface = makers[name]()
            count = surface.round if self._chosen.round else -(-self._chosen.cases * SHARES[name] // whole)
            seeds = (seed for seed in self._seeds() if time.monotonic() < self._until)
            self.tallies.append(fuzz(surface, self._aim, seeds, count, lambda tally, n=count: _progress(tally, n)))
            for finding in self.tallies[-1].findings:
                _found(finding)

    def _seeds(self) -> Any:
        first = self._chosen.seed
        return [first] if self._chosen.round else range(first, first + 1_000_000)


def _progress(tally: Tally, count: int) -> None:
    show(f"  {tally.surface:7} {tally.cases:6} of {count}  {tally.seconds:6.0f} s  findings {len(tally.findings)}")


def _found(finding: Finding) -> None:
    show(f"\n{finding.surface}: {finding.error[:2000]}\n  case: {finding.case[:2000]}")
    show(f"  again: make fuzz ARGS='--only {finding.surface} --seed {finding.round_seed} --round'\n")


def faults(before: dict[str, Any], after: dict[str, Any], seen: dict[str, Any], idle: tuple[int, Any]) -> list[str]:
    """What is wrong in the end, apart from single cases."""
    grown = after["rss"] - before["rss"]
    checks = {
        f"left over: {after['left']}": after["left"],
        f"front ends broke: {after['broken']}": after["broken"],
        f"not ready: {after['missing']}": [line for line in after["missing"] if "rogue" not in line],
        f"descriptors: {before['fds']}, then {after['fds']}": after["fds"] > before["fds"] + KEPT_FDS,
        f"tasks: {before['tasks']}, then {after['tasks']}": after["tasks"] > before["tasks"] + KEPT_FDS,
        f"memory: {grown >> 20} MiB more": grown > KEPT_BYTES,
        f"a bystander's streams were wrong: {seen}": seen["wrong"] or not seen["streams"],
        f"a bystander waited {seen['longest_gap']:.2f} s": seen["longest_gap"] > LONGEST_GAP_SECONDS,
        f"a bystander waited {seen['gap_p99']:.2f} s, p99": seen["gap_p99"] > P99_GAP_SECONDS,
        f"idle connections stay after {BOUND_SECONDS:g} s: {dict(idle[1])}": idle[1],
    }
    return [text for text, wrong in checks.items() if wrong]


def table(tallies: list[Tally]) -> None:
    show(f"\n{'surface':8}{'cases':>8}{'findings':>10}{'cases/s':>9}{'slowest':>9}  outcomes")
    for tally in tallies:
        common = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common(7))
        rate = tally.cases / max(tally.seconds, 1e-9)
        show(f"{tally.surface:8}{tally.cases:8}{len(tally.findings):10}{rate:9.0f}{tally.slowest:8.2f}s  {common}")
    for tally in tallies:
        if tally.slowest > 1.0:
            show(f"  slowest of {tally.surface}: {tally.slowest_case}")


def main() -> int:
    chosen = options()
    warnings.simplefilter("ignore", HypothesisWarning)
    folder = Path(mkdtemp(prefix="segue-fuzz-"))
    show(f"seed {chosen.seed}; the target's log: {folder / 'target.log'}")
    began = time.monotonic()
    with aimed(folder / "target.log") as aim:
        document(aim)  # made once, which takes a second of everybody's
        aim.quiet()
        idlers = Idlers(aim)
        command = [sys.executable, "-m", "tests.fuzz.bystander", aim.http]
        bystander = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        before = aim.account()
        run = Run(aim, chosen)
        try:
            run.surfaces()
        finally:
            said, _ = bystander.communicate("end\n", timeout=60)
        idle = idlers.ended()
        after = aim.quiet() if aim.alive() else {}
    seen = json.loads(said)
    wrong = faults(before, after, seen, idle) if after else ["the target died"]
    table(run.tallies)
    cases = sum(tally.cases for tally in run.tallies)
    show(f"\n{cases} cases and {idle[0]} idle connections in {time.monotonic() - began:.0f} s, seed {chosen.seed}")
    gaps = f"gaps p99 {seen['gap_p99'] * 1000:.0f} ms, longest {seen['longest_gap'] * 1000:.0f} ms"
    show(f"bystander: {seen['streams']} streams, {seen['wrong']} wrong, {gaps}")
    for name, unit in (("rss", "bytes of memory"), ("fds", "descriptors"), ("tasks", "tasks")):
        show(f"target: {before[name]} {unit} before, {after.get(name)} after")
    for line in wrong:
        show(f"WRONG: {line}")
    if chosen.json:
        report = {"seed": chosen.seed, "surfaces": [tally.report() for tally in run.tallies], "bystander": seen}
        Path(chosen.json).write_text(json.dumps({**report, "wrong": wrong, "before": before, "after": after}, indent=1))
    return 1 if wrong or any(tally.findings for tally in run.tallies) else 0


if __name__ == "__main__":
    raise SystemExit(main())
