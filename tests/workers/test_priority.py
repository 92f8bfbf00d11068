"""A client's priority travels on to the engine, whose scheduler may not know what to do with it."""

from __future__ import annotations

import pytest

from orchestrator.proto.worker_pb2 import Submit
from tests.workers.support import Pair, gateway, make_request, tokens
from workers import wire


@pytest.mark.parametrize("priority", [-(1 << 31), -1, 7, (1 << 31) - 1])
async def test_no_engine_refuses_a_priority(pair: Pair, priority: int) -> None:
    wire_id = f"priority {priority}"
    request = make_request(wire_id, [1000 + i for i in range(20)], max_tokens=3)
    request.priority = priority
    async with gateway(pair.decode) as peer:
        await peer.send(submit=Submit(wire_id=wire_id, request=wire.encode_request(request)))
        assert len(tokens(await peer.finished(wire_id))) == 3
