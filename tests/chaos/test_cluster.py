"""The short form: a whole cluster on Ray nodes of its own, each kind of fault at least once under load.

``make chaos`` is the long one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import LOSSES, Campaign, codes
from tests.chaos.faults import KINDS
from tests.chaos.ground import ground
from tests.chaos.transcript import DONE, Ask, asks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(290)]

LEAST, MOST = 500, 6000


def load(campaign: Campaign) -> Iterator[Ask]:
    """Until each kind has struck."""
    for number, ask in enumerate(asks(MOST, seed=3)):
        if number >= LEAST and not campaign.first:
            return
        yield ask


async def until_struck(campaign: Campaign) -> None:
    outcome = await campaign.run(load(campaign), 16)
    struck = [each.fault.kind.name for each in outcome.struck]
    told = f"{codes(outcome)} under {struck}"
    assert not outcome.wrong, "\n".join(itertools.islice(outcome.wrong, 20)) + told
    assert set(struck) == {kind.name for kind in KINDS}, told
    ended = codes(outcome)
    assert sum(ended.get(code, 0) for code in LOSSES) <= 0.02 * len(outcome.transcripts), told
    assert ended[DONE] >= 0.8 * len(outcome.transcripts), told


async def test_each_kind_of_fault_under_load_breaks_no_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a Ray on loopback is found there only so
    with ground(tmp_path, prefill=1, decode=3, nodes=2) as there:
        await until_struck(Campaign(there, seed=3, every=1.5, first=KINDS, most_seconds=150))
