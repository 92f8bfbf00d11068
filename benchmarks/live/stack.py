"""Workers, a controller's word of them, and gateways in front, each in processes of their own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.live import results, trace
from benchmarks.live.children import Child, child
from benchmarks.live.controller import publishing, worker_ids
from orchestrator.config import effective_engine_args
from orchestrator.core.spec import ClusterSpec, Endpoint

_ANY_PORT = Endpoint("127.0.0.1", 0)
_LOAD_SLACK_SECONDS = 180.0


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Processors for the gateway, and for all that stands for other machines; any where none are named."""

    gateway: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()

    @classmethod
    def apart(cls) -> Places:
        """One for the gateway, the rest for the others, if there is more than one."""
        first, *rest = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(rest)) if rest else cls()


@dataclasses.dataclass(frozen=True, slots=True)
class Workers:
    """Running mock workers of a configuration."""

    spec: ClusterSpec
    addresses: dict[str, str]
    logs: Path
    places: Places

    @asynccontextmanager
    async def gateway(self, spec: ClusterSpec | None = None, **given: Any) -> AsyncIterator[Gateway]:
        """A gateway in front of them; ``spec`` may route in another way than the workers' own."""
        chosen = spec or self.spec
        gateway = dataclasses.replace(chosen.gateway, http=_ANY_PORT, grpc=_ANY_PORT)
        chosen = dataclasses.replace(chosen, gateway=gateway)
        async with publishing(chosen, self.addresses) as controller:
            argument = {"controller": controller, "workers": len(self.addresses), **given}
            async with child("benchmarks.live.gateway", argument, self.logs, "gateway", self.places.gateway) as process:
                said = await process.read()
                yield Gateway(
                    process, said["grpc"], said["http"], said["pid"], chosen.models[0].name, self.logs, self.places
                )


@dataclasses.dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that all workers are linked to."""

    process: Child
    address: str
    http: str
    pid: int
    model: str
    logs: Path
    places: Places

    async def send(
        self,
        asked: list[trace.Asked],
        name: str,
        salt: int = 0,
        meanwhile: Callable[[float], Awaitable[None]] | None = None,
    ) -> list[results.Served]:
        """Sends a trace from a process of its own; returns what came back, in the order of the ends.

        ``meanwhile`` runs beside it, and is told when the trace begins, by ``time.perf_counter``.
        """
        path, out = self.logs / f"{name}.jsonl", self.logs / f"{name}.out.jsonl"
        trace.write(path, asked)
        argument = {"address": self.address, "model": self.model, "trace": str(path), "out": str(out), "salt": salt}
        async with child("benchmarks.live.load", argument, self.logs, f"{name}-load", self.places.others) as load:
            began = (await load.read())["began"]
            if meanwhile is not None:
                await meanwhile(began)
            await load.read(asked[-1].at + _LOAD_SLACK_SECONDS)
        return results.read(out)


@asynccontextmanager
async def workers(
    spec: ClusterSpec, logs: Path, processes: int = 2, places: Places | None = None
) -> AsyncIterator[Workers]:
    """The mock workers that a configuration with one model asks for, over a few processes."""
    places = places or Places()
    (model,) = spec.models
    wanted = [
        {
            "worker_id": worker_id,
            "role": role.value,
            "model": model.name,
            "engine": effective_engine_args(model, pool),
        }
        for role, pool in model.pools.items()
        for worker_id in worker_ids(model.name, role, pool.replicas)
    ]
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(
                child(
                    "benchmarks.live.workers",
                    {"workers": wanted[start::processes]},
                    logs,
                    f"workers-{start}",
                    places.others,
                )
            )
            for start in range(processes)
        ]
        for each in running:
            addresses |= await each.read()
        yield Workers(spec, addresses, logs, places)
