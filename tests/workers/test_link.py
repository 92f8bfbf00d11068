"""What waits for a gateway is bounded, and what it may miss is folded, not lost."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import Overloaded, WorkerLost
from orchestrator.core.mirror import Backlog, CacheMirror, CacheNews
from orchestrator.proto.worker_pb2 import Load, Step, Transfers
from workers import link as links
from workers.link import CACHE_CHUNK


def Link(gateway_id: str, **bounds: int) -> links.Link:  # noqa: N802
    backlog = Backlog(CacheMirror("m", 16))
    backlog.take(1)
    return links.Link(gateway_id, backlog, **bounds)


async def test_load_that_a_gateway_did_not_read_in_time_is_replaced() -> None:
    link = Link("slow")
    for running in range(10_000):
        link.send(Step(load=Load(running=running)))
    step = await link.next(0.01)
    assert step is not None
    assert step.load.running == 9_999
    assert await link.next(0.01) is None


async def test_folding_adds_transfers_up() -> None:
    link = Link("slow")
    for number in range(1, 6):
        transfers = Transfers(count=1, bytes=10, seconds=0.5, failed=1)
        link.send(Step(load=Load(running=number), transfers=transfers))
    link.send(Step(draining=True))
    step = await link.next(0.01)
    assert step is not None
    moved = step.transfers
    assert (moved.count, moved.bytes, moved.seconds, moved.failed) == (5, 50, 2.5, 5)
    assert step.draining


async def test_outputs_keep_their_frames_and_their_order() -> None:
    link = Link("slow")
    link.send(Step(load=Load(running=1)))
    link.send(Step(outputs=[b"first"]))
    link.send(Step(load=Load(running=2)))
    link.send(Step(outputs=[b"second"]))
    link.send(Step(load=Load(running=3)))
    read = []
    while step := await link.next(0.01):
        read.append(step)
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


async def test_cache_news_go_with_the_next_frame_in_parts() -> None:
    link = Link("slow")
    for number in range(3):
        link.send(Step(outputs=[bytes([number])]))
    link.backlog.add(CacheNews(stored=range(CACHE_CHUNK + 5)))
    link.backlog.add(CacheNews(removed=[CACHE_CHUNK + 3, 1 << 50], stored=[1 << 40]))
    read = []
    while link.backlog or len(read) < 3:
        read.append(await link.next(0.01) or Step())
        link.enclose_news(read[-1])
    assert [list(step.outputs) for step in read] == [[b"\0"], [b"\1"], [b"\2"]]
    assert [len(step.cache.stored) for step in read] == [CACHE_CHUNK, 5, 0]
    assert list(read[0].cache.removed) == [1 << 50]
    assert list(read[1].cache.stored)[-2:] == [CACHE_CHUNK + 4, 1 << 40]
    assert not read[2].HasField("cache")


async def test_a_backlog_needs_no_frame_to_go_with() -> None:
    link = Link("slow")
    link.backlog.add(CacheNews(cleared=True))
    assert await link.next(60) is None, "at once"


@pytest.mark.parametrize("first", [None, WorkerLost("gone")])
async def test_the_first_reason_of_an_end_stays(first: WorkerLost | None) -> None:
    link = Link("gateway")
    link.end(first)
    link.end(WorkerLost("later"))
    assert link.ended.result() is first
