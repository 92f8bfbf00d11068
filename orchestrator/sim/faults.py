"""What goes wrong in a run, as text, several with commas between them:

``crash:W@T``, ``drain:W@T``, ``slow:W@T:xF``, ``fail:W@T:P``, ``flap:W@T+D``, ``partition:G-W@T+D``, ``lose:P``,
``reorder:P``, ``leave:P``, ``random:K``. ``slow`` and ``fail`` may end with ``+D``.

W is a worker's id or number (from 0), G a gateway's number, T seconds from the start, D seconds, F a factor, P a share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.core.errors import ConfigError

if TYPE_CHECKING:
    from random import Random


class Kind(StrEnum):
    CRASH = "crash"  # the worker's process dies and is replaced after a while
    DRAIN = "drain"  # the worker takes nothing new, and is replaced when it has nothing left
    SLOW = "slow"  # the worker's steps take longer from then on
    FAIL = "fail"  # this share of what the worker is sent ends with an error of its engine
    FLAP = "flap"  # its sessions break every other second
    PARTITION = "partition"  # nothing passes between a gateway and a worker
    LOSE = "lose"  # this share of load and cache reports is lost
    REORDER = "reorder"  # this share of load reports comes late, behind newer ones
    LEAVE = "leave"  # this share of clients goes away before its end
    RANDOM = "random"  # so many crashes, slow workers, drains and partitions at random


@dataclass(frozen=True, slots=True)
class Fault:
    """``worker`` is an id or a number as text; what a kind does not use has its default."""

    kind: Kind
    worker: str = ""
    at: float = 0.0
    gateway: int = 0
    seconds: float = 0.0
    factor: float = 1.0
    share: float = 0.0
    count: int = 0


_NUMBER = r"\d+(?:\.\d+)?"
_FORMS = {
    Kind.CRASH: re.compile(rf"(?P<worker>[^@]+)@(?P<at>{_NUMBER})"),
    Kind.DRAIN: re.compile(rf"(?P<worker>[^@]+)@(?P<at>{_NUMBER})"),
    Kind.SLOW: re.compile(rf"(?P<worker>[^@]+)@(?P<at>{_NUMBER}):x(?P<factor>{_NUMBER})(\+(?P<seconds>{_NUMBER}))?"),
    Kind.FAIL: re.compile(rf"(?P<worker>[^@]+)@(?P<at>{_NUMBER}):(?P<share>{_NUMBER})(\+(?P<seconds>{_NUMBER}))?"),
    Kind.FLAP: re.compile(rf"(?P<worker>[^@]+)@(?P<at>{_NUMBER})\+(?P<seconds>{_NUMBER})"),
    Kind.PARTITION: re.compile(rf"(?P<gateway>\d+)-(?P<worker>[^@]+)@(?P<at>{_NUMBER})\+(?P<seconds>{_NUMBER})"),
    Kind.LOSE: re.compile(rf"(?P<share>{_NUMBER})"),
    Kind.REORDER: re.compile(rf"(?P<share>{_NUMBER})"),
    Kind.LEAVE: re.compile(rf"(?P<share>{_NUMBER})"),
    Kind.RANDOM: re.compile(r"(?P<count>\d+)"),
}
_SHAPES = {
    Kind.CRASH: "crash:W@T",
    Kind.DRAIN: "drain:W@T",
    Kind.SLOW: "slow:W@T:xF",
    Kind.FAIL: "fail:W@T:P",
    Kind.FLAP: "flap:W@T+D",
    Kind.PARTITION: "partition:G-W@T+D",
    Kind.LOSE: "lose:P",
    Kind.REORDER: "reorder:P",
    Kind.LEAVE: "leave:P",
    Kind.RANDOM: "random:K",
}


def parse(text: str) -> tuple[Fault, ...]:
    """Faults as the command line gives them. Raises ConfigError."""
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(text: str) -> Fault:
    name, _, rest = text.partition(":")
    where = f"--faults {text}"
    if name not in set(Kind):
        raise ConfigError(f"found {name!r}, allowed: {', '.join(_SHAPES.values())}", where=where)
    kind = Kind(name)
    found = _FORMS[kind].fullmatch(rest)
    if found is None:
        raise ConfigError(f"found {rest!r}, allowed: {_SHAPES[kind]}", where=where)
    values = found.groupdict()
    fault = Fault(
        kind,
        values.get("worker", ""),
        float(values.get("at", 0.0)),
        int(values.get("gateway", 0)),
        float(values.get("seconds") or 0.0),
        float(values.get("factor", 1.0)),
        float(values.get("share", 0.0)),
        int(values.get("count", 0)),
    )
    if fault.share > 1 or fault.factor <= 0:
        raise ConfigError("a share is at most 1, a factor above 0", where=where)
    return fault


def share(faults: Sequence[Fault], kind: Kind) -> float:
    """How much of something is lost, late or leaves; 0 if no fault says so."""
    return max((fault.share for fault in faults if fault.kind is kind), default=0.0)


def timed(faults: Sequence[Fault], workers: int, gateways: int, seconds: float, rng: Random) -> Iterator[Fault]:
    """The faults that happen at a time, those at random drawn."""
    for fault in faults:
        if fault.worker:
            yield fault
        for _ in range(fault.count):
            kind = rng.choice((Kind.CRASH, Kind.DRAIN, Kind.SLOW, Kind.PARTITION))
            yield Fault(
                kind,
                str(rng.randrange(workers)),
                rng.random() * seconds,
                rng.randrange(gateways),
                seconds=rng.choice((0.5, 3.0, 20.0)),
                factor=rng.choice((2.0, 4.0)),
            )
