"""What clients send: traces in Mooncake's format, and a prompt's tokens made of its block ids.

A line is ``{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}``, an id for each 512
tokens of the prompt, the last of which may be cut short. Prompts that begin with the same ids begin with the same
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

BLOCK = 512  # tokens an id
FIRST_TOKEN, TOKENS = 1000, 30_000  # ordinary tokens of the tokenizer in use


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; ``at`` in seconds from the trace's start."""

    at: float
    prompt_tokens: int
    output_tokens: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Poisson arrivals at ``rate`` a second for ``seconds``.

    Prompts begin with one of ``prefixes`` prefixes, chosen by Zipf's law, each a number of blocks in ``shared``; their
    own tail is ``tail`` tokens, the answer ``output`` (all: least and most).
    """

    rate: float
    seconds: float
    prefixes: int
    shared: tuple[int, int]
    tail: tuple[int, int]
    output: tuple[int, int]


def generated(shape: Shape, seed: int) -> list[Asked]:
    """The same requests for the same seed."""
    rng = Random(seed)
    ids = iter(range(1 << 40))
    heads = [tuple(next(ids) for _ in range(rng.randint(*shape.shared))) for _ in range(shape.prefixes)]
    weights = [1 / (rank + 1) for rank in range(shape.prefixes)]
    asked, at = [], 0.0
    while (at := at + rng.expovariate(shape.rate)) < shape.seconds:
        (head,) = rng.choices(heads, weights) if heads else ((),)
        tail = rng.randint(*shape.tail)
        own = tuple(next(ids) for _ in range(-(-tail // BLOCK)))
        asked.append(Asked(at, len(head) * BLOCK + tail, rng.randint(*shape.output), (*head, *own)))
    return asked


def write(path: Path, trace: Iterable[Asked]) -> None:
    with path.open("w") as file:
        for each in trace:
            row = {
                "timestamp": round(each.at * 1000),
                "input_length": each.prompt_tokens,
                "output_length": each.output_tokens,
                "hash_ids": each.ids,
            }
            print(json.dumps(row), file=file)


def read(path: Path) -> Iterator[Asked]:
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield Asked(row["timestamp"] / 1000, row["input_length"], row["output_length"], tuple(row["hash_ids"]))


def tokens(asked: Asked, salt: int = 0) -> list[int]:
    """The prompt's token ids; another ``salt`` gives other prompts of the same shape."""
    return _of(asked.ids, salt)[: asked.prompt_tokens]


def _of(ids: Sequence[int], salt: int) -> list[int]:
    blocks = [np.random.default_rng((salt, each)).integers(FIRST_TOKEN, FIRST_TOKEN + TOKENS, BLOCK) for each in ids]
    return [int(token) for block in blocks for token in block]
