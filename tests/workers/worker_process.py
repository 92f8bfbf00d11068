"""A worker actor in a process of its own: ``python -m tests.workers.worker_process '<assignment as JSON>'``.

Prints one JSON line when it is up, then obeys lines on stdin: ``drain SECONDS``, ``ranks``, ``hang``, ``stop``. It ends
with stdin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from typing import Any, TextIO

from orchestrator.core.errors import WorkerStartFailed
from orchestrator.core.spec import Backend, Bind, Device, Role
from orchestrator.core.types import WorkerAssignment
from workers.actor import WorkerActor


def assignment(given: dict[str, object]) -> WorkerAssignment:
    fields = {
        "cluster": "test",
        "worker_id": "worker-0",
        "epoch": 1,
        "model": "test",
        "source": "tiny:llama",
        "role": "serve",
        "device": "cpu",
        "backend": "vllm",
        "bind": "loopback",
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        **given,
    }
    for name, kind in (("role", Role), ("device", Device), ("backend", Backend), ("bind", Bind)):
        fields[name] = kind(fields[name])
    return WorkerAssignment(**fields)  # type: ignore[arg-type]


async def main() -> None:
    out = os.fdopen(os.dup(1), "w")  # the actor sends descriptor 1 to its log
    actor = WorkerActor(assignment(json.loads(sys.argv[1])))
    starting = asyncio.create_task(actor.start())
    stages: list[str] = []
    patience = float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")  # stops in mid-start after so many seconds
    while not starting.done():
        await asyncio.wait([starting], timeout=0.05)
        if (patience := patience - 0.05) < 0:
            await actor.stop()
        stage = (await actor.snapshot()).stage
        if stage and stage not in stages:
            stages.append(stage)
    try:
        await starting
    except WorkerStartFailed as error:
        say(out, {**dataclasses.asdict(await actor.snapshot()), "error": str(error), "stages": stages})
        return
    say(out, {**dataclasses.asdict(await actor.snapshot()), "stages": stages})
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    hanging: list[asyncio.Task[object]] = []  # nobody waits for it: it never answers
    while line := (await lines.readline()).split():
        if line[0] == b"drain":
            await actor.drain(float(line[1]))
        if line[0] == b"stop":
            break
        if line[0] == b"hang":
            hanging.append(asyncio.create_task(actor._engine._client.collective_rpc_async("hang")))  # type: ignore
        ranks = await weighed(actor) if line[0] == b"ranks" else []
        say(out, {**dataclasses.asdict(await actor.snapshot()), "ranks": ranks})
    for task in hanging:
        task.cancel()
    await actor.stop()
    await asyncio.wait_for(actor.wait_closed(), 1)
    say(out, dataclasses.asdict(await actor.snapshot()))


async def weighed(actor: Any) -> Any:
    """What each rank of an engine holds that was started with ``tests.workers.weighed.WEIGHED``."""
    return await actor._engine._client.collective_rpc_async("weighed")


def say(out: TextIO, what: object) -> None:
    print(json.dumps(what), file=out, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
