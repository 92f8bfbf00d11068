"""Links between a gateway and its workers are cut, blip, fall silent and crawl, under a load of all kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

from tests.chaos.bounds import within
from tests.chaos.campaign import LOSSES
from tests.chaos.clients import MOST_SECONDS
from tests.chaos.rig import SILENCE, Rig, rig
from tests.chaos.transcript import Ask, asks

MOST, AT_A_TIME = 3000, 12
FAULTS = 8  # each way twice
THROUGH_SECONDS = MOST_SECONDS + 60.0  # no request takes longer than the first, and the faults take the rest


def until_disturbed(told: list[str]) -> Iterator[Ask]:
    for ask in asks(MOST, seed=5):
        if len(told) > FAULTS:
            return
        yield ask


async def disturb(rig: Rig, load: asyncio.Task[None], rng: Random, told: list[str]) -> None:
    """One link at a time goes wrong, in each way in turn, and is mended before the next one."""
    places = sorted(rig.places)
    while not load.done():
        worker_id = rng.choice(places)
        proxy = rig.places[worker_id].proxy
        assert proxy is not None
        kind = ("cut", "blip", "hold", "crawl")[len(told) % 4]
        told.append(f"{kind} {worker_id}")
        if kind == "cut":
            proxy.cut()
        elif kind == "blip":
            proxy.cut(refuse=False)
        elif kind == "hold":
            proxy.hold()
        else:
            proxy.delay = 0.2
        await asyncio.wait([load], timeout=SILENCE + 1.0 if kind == "hold" else 0.7)
        proxy.mend()
        await asyncio.wait([load], timeout=0.3)


async def test_links_that_go_wrong_break_no_promise() -> None:
    async with rig() as made:
        told: list[str] = []
        load = asyncio.create_task(made.clients.run(until_disturbed(told), AT_A_TIME))
        async with within(THROUGH_SECONDS, "requests over links that go wrong"):
            await disturb(made, load, Random(5), told)
            await load
        transcripts = list(made.clients.transcripts)
        assert len(told) >= FAULTS
        assert any(signal == "lost" for _, signal in made.taken), told
        assert sum(each.outcome in LOSSES for each in transcripts) <= 0.02 * len(transcripts), told
        await made.checked()
