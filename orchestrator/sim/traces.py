"""What clients ask for, and when: recorded traces in two formats, as offers in order of time.

``mooncake``  one JSON object a line: timestamp (ms), input_length, output_length, hash_ids (of blocks of 512 tokens).
``azure``     CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens; prompts share nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.errors import ConfigError
from orchestrator.sim.generate import Shape, generate
from orchestrator.sim.offer import Offer, spread, unshared

GENERATE = "generate:"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOONCAKE_BLOCK = 512


class Limits(NamedTuple):
    """What to take of a trace: ``speed`` and ``rate`` (requests a second) change its pace, the rest cuts it."""

    speed: float | None = None
    rate: float | None = None
    requests: int | None = None
    duration: float | None = None


def offers(source: str, block_size: int, limits: Limits, seed: int, replicas: int) -> list[Offer]:
    """The requests of ``source``: a file, or ``generate:`` and a shape.

    Raises:
        ConfigError: the file or a line of it can't be used; ``where`` names the line.
    """
    if source.startswith(GENERATE):
        shape = Shape.parse(source.removeprefix(GENERATE))
        rate = limits.rate or shape.rate or 2.0 * replicas
        found = generate(replace(shape, rate=rate), block_size, seed, limits.requests, limits.duration)
        return _paced(found, Limits(limits.speed))
    return _paced(_read(Path(source), block_size), limits)


def _paced(found: list[Offer], limits: Limits) -> list[Offer]:
    if limits.requests is not None:
        found = found[: limits.requests]
    speed = limits.speed or 1.0
    if limits.rate is not None and len(found) > 1 and found[-1].at > 0:
        speed = limits.rate * found[-1].at / (len(found) - 1)
    if speed != 1.0:
        found = [offer._replace(at=offer.at / speed) for offer in found]
    if limits.duration is not None:
        found = [offer for offer in found if offer.at < limits.duration]
    return found


def _read(file: Path, block_size: int) -> list[Offer]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "name a trace, or generate:poisson"
        raise ConfigError(f"the trace can't be read: {reason}", where=str(file), hint=hint) from error
    first = next((line for line in lines if line.strip()), "")
    if first.strip() == AZURE_HEADER:
        found = _azure(lines, str(file), block_size)
    elif first.lstrip().startswith("{"):
        found = _mooncake(lines, str(file), block_size)
    else:
        raise ConfigError(
            "the trace is in no format that is known", where=f"{file}:1", hint=f"JSON lines, or CSV with {AZURE_HEADER}"
        )
    if not found:
        raise ConfigError("the trace has no requests", where=str(file))
    found.sort(key=lambda offer: offer.at)
    start = found[0].at
    return [offer._replace(at=offer.at - start) for offer in found]


# ---- mooncake


def _mooncake(lines: Iterable[str], name: str, block_size: int) -> list[Offer]:
    if MOONCAKE_BLOCK % block_size:
        what = f"the trace has blocks of {MOONCAKE_BLOCK} tokens, the model's are {block_size}"
        raise ConfigError(what, where=name, hint="choose a block_size that divides 512")
    chains = _Chains(MOONCAKE_BLOCK // block_size)
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        at, prompt, output, ids = _fields(line, where)
        if len(ids) * MOONCAKE_BLOCK < prompt:
            what = f"{len(ids)} hash_ids are too few for {prompt} tokens in blocks of {MOONCAKE_BLOCK}"
            raise ConfigError(what, where=where)
        found.append(Offer(at / 1000, prompt, output, chains.blocks(ids, prompt // block_size)))
    return found


def _fields(line: str, where: str) -> tuple[float, int, int, list[int]]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"no JSON object: {error}", where=where) from None
    if not isinstance(entry, dict):
        raise ConfigError("no JSON object", where=where)
    at, ids = entry.get("timestamp"), entry.get("hash_ids")
    if not isinstance(at, int | float) or isinstance(at, bool) or not 0 <= at < float("inf"):
        raise ConfigError(f"timestamp is {at!r}, not milliseconds", where=where)
    if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ConfigError("hash_ids is no list of whole numbers", where=where)
    return float(at), _tokens(entry, "input_length", where), _tokens(entry, "output_length", where), ids


def _tokens(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} is {value!r}, not a positive number of tokens", where=where)
    return value


class _Chains:
    """A trace's block to the hashes of the model's blocks in it, each over all that comes before it.

    A block of the trace is known by its id and the one before it, so that equal hashes always mean equal prompts.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._known: dict[tuple[int, int], int] = {}
        self._hashes: list[list[int]] = []

    def blocks(self, ids: Sequence[int], full: int) -> list[int]:
        hashes: list[int] = []
        place = -1
        for one in ids:
            place = self._known.setdefault((place, one), len(self._hashes))
            if place == len(self._hashes):
                begin = place * self._parts
                self._hashes.append([spread(begin + part) for part in range(self._parts)])
            hashes += self._hashes[place]
        return hashes[:full]


# ---- azure


def _azure(lines: Sequence[str], name: str, block_size: int) -> list[Offer]:
    found = []
    own = 0
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if not line.strip() or line.strip() == AZURE_HEADER:
            continue
        fields = line.split(",")
        if len(fields) != 3:
            raise ConfigError(f"{len(fields)} fields, not 3", where=where)
        prompt, output = _count(fields[1], "ContextTokens", where), _count(fields[2], "GeneratedTokens", where)
        full = prompt // block_size
        found.append(Offer(_seconds(fields[0], where), prompt, output, unshared(own, full)))
        own += full
    return found


def _count(text: str, key: str, where: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f"{key} is {text.strip()!r}, not a positive number of tokens", where=where)
    return int(text)


def _seconds(text: str, where: str) -> float:
    """'2023-11-16 18:17:03.9799600', to the microsecond."""
    try:
        return datetime.fromisoformat(text.strip()[:26] + "+00:00").timestamp()
    except ValueError:
        raise ConfigError(f"TIMESTAMP is {text.strip()!r}, not like 2023-11-16 18:17:03.9799600", where=where) from None
