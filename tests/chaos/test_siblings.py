"""Sequences of one request (``n`` over 1) are alike: where one of them goes on, a sibling's cache may have it all."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.rig import Rig
from tests.chaos.transcript import DONE, Ask

SIBLINGS = 3
ENOUGH = 64  # tokens of output that a sibling's worker has in its cache, beyond the prompt


@pytest.mark.parametrize("over_grpc", [False, True], ids=["http", "grpc"])
async def test_a_sequence_goes_on_where_its_sibling_is_and_nobody_else_computes_prompts(
    whole: Rig, over_grpc: bool
) -> None:
    driver = whole.stack.gateway.driver

    def at_work() -> set[str]:
        """Where they are decoded, once all of them are well under way."""
        flights = driver._flights.everything()
        far = [flight.decode_worker for flight in flights if flight.output_tokens > ENOUGH]
        return set(far) if len(far) == SIBLINGS else set()

    asking = asyncio.create_task(whole.ask(Ask(1, tuple(range(1, 40)), 400, grpc=over_grpc, n=SIBLINGS)))
    await whole.until(at_work, what="all sequences under way")
    places = at_work()
    assert len(places) > 1, "they are to be at several workers"
    for worker_id in ("m-prefill-0", "m-prefill-1"):
        whole.kill(worker_id)
    await whole.until(lambda: not [each for each in driver.workers if "prefill" in each])
    whole.kill(min(places))
    [transcript] = await asyncio.wait_for(asking, 20.0)
    assert transcript.outcome == DONE
