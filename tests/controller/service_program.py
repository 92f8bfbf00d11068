"""A controller's actor on a fake cluster, in a process of its own, as it takes the process's output for its log.

Prints what it saw, as JSON, to the file that it is given.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from orchestrator.cli import rpc
from orchestrator.config import digest
from orchestrator.controller.service import ControllerActor
from orchestrator.core.spec import Endpoint, Role, RolloutSpec
from tests.controller.conftest import spec_of
from tests.controller.fake_cluster import FakeCluster
from tests.controller.test_upgrade import changed
from tests.ports import free_ports

WAIT = 60.0  # seconds


class Home(FakeCluster):
    """``again``: the process stands in for one that was lost."""

    again = False

    def restarted(self) -> bool:
        return self.again

    def resign(self) -> None: ...

    def identity(self) -> str:
        return "of this Ray"

    async def ages(self) -> list[float]:
        return []


async def upgraded_and_replaced(folder: Path) -> dict[str, Any]:
    """An upgrade; another controller takes over in the middle of it."""
    [port] = free_ports(1)
    spec = spec_of(listen=Endpoint("127.0.0.1", port), rollout=RolloutSpec(1, 0, 0.2))
    home = Home()
    first = ControllerActor(spec, str(folder), home, "127.0.0.1")
    address = await first.start()

    async def until(state: str) -> Any:
        while True:
            status = await asyncio.to_thread(rpc.first_status, [address])
            if status is not None and status.ready and status.rollout.state == state:
                return status
            await asyncio.sleep(0.02)

    began_ms = (await until("")).controller.began_ms
    new = changed(spec, Role.DECODE, max_num_seqs=7)
    gate = home.freeze("remember", "controller")
    asked = asyncio.create_task(asyncio.to_thread(rpc.upgrade, address, new, makes_room=False))
    await gate.reached.wait()
    await until("rolling")
    early = asked.done()
    gate.open()
    await asked
    memory = await home.recall()
    await first._server.stop()  # type: ignore[union-attr]
    first._run.remove_done_callback(first._end_with)  # type: ignore[union-attr]
    first._run.cancel()  # type: ignore[union-attr]
    twin = home.another()
    twin.again = True  # type: ignore[attr-defined]
    then = ControllerActor(spec, str(folder), twin, "127.0.0.1")  # type: ignore[arg-type]
    status = await until("rolling")
    await until("done")
    runs = digest((await asyncio.to_thread(rpc.topology, address))[1])
    await then.shutdown(1.0)
    return {
        "answered_before_it_was_remembered": early,
        "remembered": bool(memory and memory.previous_json),
        "same_cluster": began_ms == status.controller.began_ms > 0,
        "term": status.controller.term,
        "becomes_the_new_one": runs == digest(new),
        "left": [*await home.names()],
        "left_in_memory": await home.recall(),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    told = asyncio.run(asyncio.wait_for(upgraded_and_replaced(place), WAIT))
    (place / "told.json").write_text(json.dumps(told))
