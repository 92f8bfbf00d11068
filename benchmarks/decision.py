"""What it takes to know how much of a prompt each worker has, beside Dynamo's RadixTree::

    python -m venv /tmp/bench && /tmp/bench/bin/pip install numpy ai-dynamo-runtime==1.6.1
    /tmp/bench/bin/python -m benchmarks.decision [--json] [--rounds 400]

Both indexes hold the same: of each of the prompts that are asked for some workers have the head, fewer have each
further turn, and one stops within a turn, as eviction leaves it; around them lie the other prompts of all workers'
caches. Both go from a list of token ids to a dict of every worker that has something with its leading blocks, and to
the best of them; prompts and the order of the two take turns in one process. What they find is compared each time.

"scattered" is the same with every holder's part of a prompt ended at a place of its own, which no workload does and
neither index is made for.

Dynamo's package asks for an older pydantic than Segue, hence an environment of its own: this program needs no more of
Segue than its source. Takes less than a minute. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import random
import statistics
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

from orchestrator.core.prefix import PrefixIndex
from orchestrator.gateway.hashing import prompt_blocks, root_of

BLOCK = 16
VOCABULARY = 128_000
BARS = {8_192: 0.6, 32_768: 0.4}  # of Dynamo's time, by prompt tokens
BYTES_BAR = 100.0
WORKERS = (64, 1000)
PROMPTS = 8  # that are asked for, in turn
BACKGROUND = 400_000  # blocks of other prompts
TURNS = 8
ROOT = root_of("model")

Found = tuple[dict[int, int], int]  # blocks by worker, and the best worker


@dataclass(frozen=True, slots=True)
class Row:
    """One case. Medians in microseconds."""

    contents: str
    tokens: int
    workers: int
    holders: int  # of a prompt, in the mean
    lengths: int  # that differ among them, in the mean
    blocks: int  # in the index
    dynamo_us: float
    segue_us: float
    ratio: float
    bar: float | None
    bytes_a_block: float


@dataclass(frozen=True, slots=True)
class Contents:
    """``held``: for each prompt that is asked for, how many blocks which worker has; ``others``: a worker's own."""

    prompts: Sequence[list[int]]
    held: Sequence[dict[int, int]]
    others: Sequence[tuple[int, list[int]]]


def some_tokens(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(VOCABULARY) for _ in range(count)]


def made(tokens: int, workers: int, scattered: bool, dice: random.Random) -> Contents:
    blocks = tokens // BLOCK
    prompts = [some_tokens(dice, tokens) for _ in range(PROMPTS)]
    held = []
    for _ in prompts:
        here: dict[int, int] = {}
        for worker in dice.sample(range(workers), workers // 3):
            turns = 1
            while turns < TURNS and dice.random() < 0.5:
                turns += 1
            here[worker] = dice.randrange(1, blocks + 1) if scattered else blocks * turns // TURNS
        here[next(iter(here))] -= here[next(iter(here))] // 3
        held.append(here)
    others = [(number % workers, some_tokens(dice, tokens)) for number in range(BACKGROUND // blocks)]
    return Contents(prompts, held, others)


class Dynamo:
    """Its RadixTree, filled by its own events and asked as its router asks."""

    def __init__(self) -> None:
        package = importlib.import_module("dynamo.llm")
        self._tree: Any = package.RadixTree()
        self._hashes: Callable[[list[int], int], list[int]] = package.compute_block_hash_for_seq
        self._events = 0

    def store(self, worker: int, tokens: list[int], count: int) -> None:
        hashes = self._hashes(tokens[: count * BLOCK], BLOCK)
        names = prompt_blocks(tokens[: count * BLOCK], BLOCK, ROOT)  # an engine's: each over all tokens before it too
        blocks = [{"block_hash": name, "tokens_hash": own} for name, own in zip(names, hashes, strict=True)]
        self._events += 1
        event = {"event_id": self._events, "data": {"stored": {"parent_hash": None, "blocks": blocks}}}
        self._tree.apply_event(worker, json.dumps(event).encode())

    def ask(self, tokens: list[int]) -> Found:
        scores = self._tree.find_matches(self._hashes(tokens, BLOCK)).scores
        return scores, max(scores, key=scores.get, default=-1)

    @staticmethod
    def plain(found: Found) -> Found:
        """By worker alone, where it says worker and rank."""
        return {key[0]: blocks for key, blocks in found[0].items()}, found[1][0]  # type: ignore[index]


class Segue:
    """The prefix index, filled by what workers tell and asked as the router asks."""

    def __init__(self, workers: int) -> None:
        self.index = PrefixIndex()
        for worker in range(workers):
            assert self.index.join() == worker

    def store(self, worker: int, tokens: list[int], count: int) -> None:
        self.index.changed(worker, stored=prompt_blocks(tokens[: count * BLOCK], BLOCK, ROOT))

    def ask(self, tokens: list[int]) -> Found:
        scores = self.index.match(prompt_blocks(tokens, BLOCK, ROOT)).scores()
        return scores, next(iter(scores), -1)  # longest first


def fill(index: Dynamo | Segue, contents: Contents) -> None:
    for worker, tokens in contents.others:
        index.store(worker, tokens, len(tokens) // BLOCK)
    for tokens, held in zip(contents.prompts, contents.held, strict=True):
        for worker, count in held.items():
            index.store(worker, tokens, count)


def measured(tokens: int, workers: int, scattered: bool, rounds: int) -> Row:
    contents = made(tokens, workers, scattered, random.Random(tokens + workers))
    dynamo, segue = Dynamo(), Segue(workers)
    fill(dynamo, contents)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    fill(segue, contents)
    gc.collect()
    size = (tracemalloc.get_traced_memory()[0] - before) / len(segue.index)
    tracemalloc.stop()
    times: tuple[list[int], list[int]] = ([], [])
    for number in range(-PROMPTS, rounds):
        prompt = contents.prompts[number % PROMPTS]
        answers: dict[int, Found] = {}
        for which in (0, 1) if number % 2 else (1, 0):
            ask = segue.ask if which else dynamo.ask
            began = perf_counter_ns()
            answers[which] = ask(prompt)
            if number >= 0:
                times[which].append(perf_counter_ns() - began)
        compare(dynamo.plain(answers[0]), answers[1], contents.held[number % PROMPTS])
    theirs, ours = (statistics.median(each) / 1000 for each in times)
    return Row(
        contents="scattered" if scattered else "turns",
        tokens=tokens,
        workers=workers,
        holders=round(statistics.mean(map(len, contents.held))),
        lengths=round(statistics.mean(len(set(held.values())) for held in contents.held)),
        blocks=len(segue.index),
        dynamo_us=round(theirs, 1),
        segue_us=round(ours, 1),
        ratio=round(ours / theirs, 3),
        bar=None if scattered else BARS[tokens],
        bytes_a_block=round(size, 1),
    )


def compare(theirs: Found, ours: Found, held: dict[int, int]) -> None:
    assert theirs[0] == ours[0] == held, "the two don't find the same"
    assert held[theirs[1]] == held[ours[1]] == max(held.values())


def table(rows: Sequence[Row]) -> str:
    lines = ["contents    tokens  workers  holders  lengths     Dynamo      Segue  ratio    bar  bytes a block"]
    for row in rows:
        case = f"{row.contents:<10} {row.tokens:>7} {row.workers:>8} {row.holders:>8} {row.lengths:>8}"
        times = f"{row.dynamo_us:>7.0f} µs {row.segue_us:>7.0f} µs {row.ratio:>6.2f}"
        bar = "-" if row.bar is None else f"{row.bar:.2f}"
        lines.append(f"{case} {times} {bar:>6} {row.bytes_a_block:>14.0f}")
    return "\n".join(lines)


def missed(row: Row) -> bool:
    return row.bytes_a_block > BYTES_BAR or (row.bar is not None and row.ratio > row.bar)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.decision", description="Decisions beside Dynamo's RadixTree.")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=400, help="decisions of each, a row")
    arguments = parser.parse_args()
    cases = [(tokens, workers, scattered) for scattered in (False, True) for tokens in BARS for workers in WORKERS]
    rows = [measured(*case, arguments.rounds) for case in cases]
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else table(rows))
    return 1 if any(map(missed, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
