"""What is fuzzed, in a process of its own: a gateway with vLLM's front end over mock workers, and a controller's port.

Reads orders from stdin and answers on stdout, a JSON object a line:

    {"do": "errors"}                                   those that it logged
    {"do": "account"}                                  what it holds now
    {"do": "quiet", "seconds": s}                      waits until nothing is under way; "left" says what still is
    {"do": "rogues", "addresses": [a, ...]}            lists these as the workers of the model ``rogue``
    {"do": "end"}
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from dataclasses import replace
from typing import Any

import psutil
import uvloop

from orchestrator.config import dumps
from orchestrator.controller.fleet import Bulletin, FleetServer
from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import ClusterSpec, Role
from orchestrator.proto import cluster_pb2
from orchestrator.telemetry import foreign, logs
from tests.gateway.support import FREE, Stack, cluster, model, running

ROGUE = "rogue"
STEP_SECONDS = 0.003
MAX_MODEL_LEN = 128  # an answer without a limit ends soon


class Faults(logging.Handler):
    """Keeps what is logged as an error: nothing that comes from outside may be one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.last: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = getattr(record, "segue_error", None) or (record.exc_info[1] if record.exc_info else None)
        if record.getMessage() == "session broke":
            return  # a rogue worker's, and said of it
        self.count += 1
        place = ""
        if cause is not None and (frame := cause.__traceback__) is not None:
            while frame.tb_next is not None:
                frame = frame.tb_next
            place = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
        said = f"{record.name}: {record.getMessage()[:200]}: {type(cause).__name__}: {str(cause)[:300]}{place}"
        self.last = [*self.last[-19:], said]


def specification() -> ClusterSpec:
    """One model apart and one together, as the gateway's own tests have them, and one whose workers are not ours."""
    engine = {"max_model_len": MAX_MODEL_LEN, "block_size": 16}
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    models = [
        model("apart", "tiny:llama", Role.PREFILL, Role.DECODE, **tools),
        model("together", "tiny:llama", Role.SERVE),
        model(ROGUE, "tiny:llama", Role.SERVE),
    ]
    pools = [{role: replace(pool, engine=engine) for role, pool in each.pools.items()} for each in models]
    return cluster(*(replace(each, pools=pools[number]) for number, each in enumerate(models)))


async def _topology() -> Any:
    raise ConfigError("there are no machines here")


async def _upgrade(spec: ClusterSpec, force: bool) -> None:
    raise ConfigError("there is nothing to upgrade here")


class Target:
    """Carries orders out."""

    def __init__(self, stack: Stack, faults: Faults, fleet: str) -> None:
        self._stack = stack
        self._faults = faults
        self._fleet = fleet
        self._process = psutil.Process()

    def places(self) -> dict[str, Any]:
        workers = {worker_id: worker.address for worker_id, worker in self._stack.workers.items()}
        return {"http": self._stack.url, "grpc": self._stack.grpc_address, "fleet": self._fleet, "workers": workers}

    def account(self) -> dict[str, Any]:
        """Counts that have to return to what they were, and errors that must not be."""
        gc.collect()
        tasks = [task.get_coro() for task in asyncio.all_tasks()]
        return {
            "errors": self._faults.count,
            "said": self._faults.last,
            "tasks": len(tasks),
            "kinds": sorted({getattr(each, "__qualname__", str(each)) for each in tasks}),
            "fds": self._process.num_fds(),
            "rss": self._process.memory_info().rss,
            "broken": [front.name for front in self._stack.gateway.fronts() if front.llm.errored],
            "missing": self._stack.gateway.not_ready(),
        }

    async def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "errors":
            broken = [front.name for front in self._stack.gateway.fronts() if front.llm.errored]
            return {"errors": self._faults.count, "said": self._faults.last, "broken": broken}
        if order["do"] == "quiet":
            try:
                await self._stack.quiet(order["seconds"])
                left = ""
            except (AssertionError, TimeoutError) as error:
                left = f"{type(error).__name__}: {str(error)[:300]}"
            return {**self.account(), "left": left}
        if order["do"] == "rogues":
            self._stack.controller.remove(f"{ROGUE}-serve-0")  # an honest one, that the front end could open by
            for number, address in enumerate(order["addresses"]):
                self._stack.controller.add(ROGUE, Role.SERVE, f"{ROGUE}-{number}", address)
        return self.account()


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    faults = Faults()
    logging.getLogger().addHandler(faults)
    spec = specification()
    bulletin = Bulletin(cluster_pb2.ClusterStatus(name=spec.name))
    server = FleetServer(FREE, bulletin, dumps(spec), _topology, _upgrade)
    port = server.bind()
    await server.start()
    logs.setup("warning")
    async with running(spec, step_seconds=STEP_SECONDS) as stack:
        foreign.hush()
        target = Target(stack, faults, f"127.0.0.1:{port}")
        _say(target.places())
        orders = await _orders()
        while line := await orders.readline():
            order = json.loads(line)
            if order["do"] == "end":
                break
            _say(await target.carry_out(order))
    await server.stop()


if __name__ == "__main__":
    uvloop.run(main())
