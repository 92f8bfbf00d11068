"""What goes wrong, as data: what kind, at whom, for how long. Who is there to be hit is in the cluster's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from signal import SIGKILL, SIGSTOP, Signals

from orchestrator.proto import cluster_pb2 as pb


@dataclass(frozen=True)
class Kind:
    """``seconds`` for which a process is stopped, at least and at most; ``least`` of its sort that have to be left;
    ``whole``: only where nobody is missing."""

    name: str
    sort: str
    signal: Signals
    seconds: tuple[float, float] = (0.0, 0.0)
    least: int = 0
    weight: float = 1.0
    breaks_connections: bool = False
    whole: bool = False


DECODE, PREFILL, GATEWAY, CONTROLLER, NODE = "decode worker", "prefill worker", "gateway", "controller", "node"
ENGINE = "decode engine"  # a process of its own, behind a decode worker's, where the engine is no mock
KINDS = (
    Kind("kill -9 decode worker", DECODE, SIGKILL, least=2, weight=3.0),
    Kind("kill -9 prefill worker", PREFILL, SIGKILL, least=0, weight=2.0),
    Kind("kill -9 gateway", GATEWAY, SIGKILL, least=1, weight=1.0, breaks_connections=True),
    Kind("kill -9 raylet", NODE, SIGKILL, least=0, weight=0.4, whole=True),
    Kind("SIGSTOP decode worker, short", DECODE, SIGSTOP, (0.5, 2.0), least=2, weight=2.0),
    Kind("SIGSTOP decode worker, long", DECODE, SIGSTOP, (7.0, 12.0), least=2, weight=2.0),
    Kind("SIGSTOP prefill worker", PREFILL, SIGSTOP, (1.0, 9.0), least=0, weight=2.0),
    Kind("SIGSTOP gateway", GATEWAY, SIGSTOP, (0.5, 8.0), least=1, weight=1.0),
    Kind("kill -9 controller", CONTROLLER, SIGKILL, weight=0.7),
    Kind("SIGSTOP controller", CONTROLLER, SIGSTOP, (1.0, 10.0), weight=1.0),
)


ENGINE_KINDS = (
    *KINDS,
    Kind("kill -9 decode engine", ENGINE, SIGKILL, least=2, weight=2.0),
    Kind("SIGSTOP decode engine", ENGINE, SIGSTOP, (7.0, 12.0), least=2, weight=1.0),
)


@dataclass(frozen=True)
class Fault:
    """One that strikes a process; ``worker_id`` is whoever it is, by the cluster's own names."""

    kind: Kind
    target: str
    pid: int
    seconds: float


def serving(status: pb.ClusterStatus) -> dict[str, dict[str, int]]:
    """By sort, who serves and in which process."""
    found: dict[str, dict[str, int]] = {DECODE: {}, PREFILL: {}, ENGINE: {}, GATEWAY: {}, CONTROLLER: {}, NODE: {}}
    for model in status.models:
        for pool in model.pools:
            well = [each for each in pool.workers if each.state == "ready" and each.actor_pid]
            found[f"{pool.role} worker"] |= {each.id: each.actor_pid for each in well}
            if pool.role == "decode":
                found[ENGINE] |= {each.id: each.engine_pid for each in well if each.engine_pid != each.actor_pid}
    found[GATEWAY] |= {each.id: each.pid for each in status.gateways if each.state == "ready" and not each.stage}
    if status.controller.pid:
        found[CONTROLLER]["controller"] = status.controller.pid
    return found


def choose(
    there: Mapping[str, Mapping[str, int]], busy: set[int], rng: Random, kinds: tuple[Kind, ...], *, whole: bool
) -> Fault | None:
    """The next fault at somebody who is well, such that enough others are; None where all have to be spared."""
    possible = []
    for kind in kinds:
        well = {name: pid for name, pid in there[kind.sort].items() if pid not in busy}
        if len(well) > kind.least and (whole or not kind.whole):
            possible.append((kind, well))
    if not possible:
        return None
    kind, well = rng.choices(possible, [kind.weight for kind, _ in possible])[0]
    target = rng.choice(sorted(well))
    return Fault(kind, target, well[target], rng.uniform(*kind.seconds))
