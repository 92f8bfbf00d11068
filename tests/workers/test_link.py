"""What waits for a gateway is bounded, and what it may miss is folded, not lost."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import Overloaded, WorkerLost
from orchestrator.proto.worker_pb2 import CacheChange, Load, Step, Transfers
from workers.link import MAX_CACHE_HASHES, Link


async def test_load_that_a_gateway_did_not_read_in_time_is_replaced() -> None:
    link = Link("slow")
    for running in range(10_000):
        link.send(Step(load=Load(running=running)))
    frame = await link.next(0.01)
    assert frame is not None
    assert frame.step.load.running == 9_999
    assert await link.next(0.01) is None


async def test_folding_adds_transfers_up_and_keeps_what_the_cache_came_to() -> None:
    link = Link("slow")
    for number in range(1, 6):
        change = CacheChange(stored=[number, 100 + number], removed=[number - 1])
        transfers = Transfers(count=1, bytes=10, seconds=0.5, failed=1)
        link.send(Step(load=Load(running=number), transfers=transfers, cache=change))
    link.send(Step(draining=True))
    frame = await link.next(0.01)
    assert frame is not None
    moved = frame.step.transfers
    assert (moved.count, moved.bytes, moved.seconds, moved.failed) == (5, 50, 2.5, 5)
    assert list(frame.step.cache.stored) == [101, 102, 103, 104, 5, 105]
    assert list(frame.step.cache.removed) == [0, 1, 2, 3, 4]
    assert frame.step.draining


async def test_outputs_keep_their_frames_and_their_order() -> None:
    link = Link("slow")
    link.send(Step(load=Load(running=1)))
    link.send(Step(outputs=[b"first"]))
    link.send(Step(load=Load(running=2)))
    link.send(Step(outputs=[b"second"]))
    link.send(Step(load=Load(running=3)))
    read = []
    while frame := await link.next(0.01):
        read.append(frame.step)
    assert [list(step.outputs) for step in read] == [[b"first"], [b"second"], []]
    assert read[-1].load.running == 3


async def test_a_gateway_that_does_not_read_is_cut_off() -> None:
    link = Link("stuck", max_frames=8)
    for number in range(100):
        link.send(Step(outputs=[bytes([number])]))
    assert link.ended.done()
    assert isinstance(link.ended.result(), Overloaded)
    count = 0
    while await link.next(0.01):
        count += 1
    assert count <= 9


async def test_cache_changes_that_pile_up_become_one_snapshot() -> None:
    link = Link("slow", lambda: CacheChange(cleared=True, stored=[7]))
    batch = range(MAX_CACHE_HASHES // 4)
    for number in range(7):
        link.send(Step(outputs=[bytes([number])], cache=CacheChange(stored=batch)))
    read = []
    while frame := await link.next(0.01):
        read.append(frame.step)
    assert [step.outputs[0][0] for step in read] == list(range(7)), "outputs are never left out"
    assert sum(len(step.cache.stored) for step in read) == 1
    assert (read[-1].cache.cleared, list(read[-1].cache.stored)) == (True, [7])
    link.send(Step(cache=CacheChange(stored=[8])))
    frame = await link.next(0.01)
    assert frame is not None
    assert (frame.step.cache.cleared, list(frame.step.cache.stored)) == (False, [8])


@pytest.mark.parametrize("first", [None, WorkerLost("gone")])
async def test_the_first_reason_of_an_end_stays(first: WorkerLost | None) -> None:
    link = Link("gateway")
    link.end(first)
    link.end(WorkerLost("later"))
    assert link.ended.result() is first
