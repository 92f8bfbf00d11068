"""Mock workers, several in one process: ``python -m benchmarks.live.workers '{"workers": [...]}'``.

Each is what ``workers.actor`` makes of a mock backend: the product's session over gRPC around the product's engine.
Answers with their addresses.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.live.children import answer, answers, orders
from orchestrator.core.spec import Role
from orchestrator.proto import worker_pb2_grpc
from workers.mock import MockEngine
from workers.session import SERVER_OPTIONS, WorkerSession


async def serve(stack: AsyncExitStack, worker_id: str, role: str, model: str, engine: dict[str, Any]) -> str:
    """Starts one worker; returns its address."""
    core = MockEngine(engine)
    await core.start(lambda stage: None)
    stack.push_async_callback(core.shutdown)
    session = WorkerSession(worker_id, 1, Role(role), model, core)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    worker_pb2_grpc.add_WorkerServicer_to_server(session, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0.2)
    pump = asyncio.create_task(session.run())
    stack.callback(pump.cancel)
    return f"127.0.0.1:{port}"


async def main() -> None:
    out = answers()
    async with AsyncExitStack() as stack:
        addresses = {each["worker_id"]: await serve(stack, **each) for each in json.loads(sys.argv[1])["workers"]}
        answer(out, addresses)
        async for _ in orders():
            pass


if __name__ == "__main__":
    asyncio.run(main())
