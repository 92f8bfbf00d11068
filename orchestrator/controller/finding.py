"""Looks for all that there is of a cluster, for a controller that takes it over."""

from __future__ import annotations

import asyncio
from collections.abc import Container

from orchestrator.controller.ports import ActorLost, ActorPort, ClusterPort, slot_and_epoch
from orchestrator.core.adoption import Sighting
from orchestrator.core.errors import StaleEpoch
from orchestrator.telemetry import logs

log = logs.events("controller.finding")
Found = tuple[Sighting, ActorPort | None]


async def find(cluster: ClusterPort, seconds: float, known: Container[tuple[str, int]] = ()) -> list[Found]:
    """Every name but the known ones, with what it says of itself; all are asked at once.

    What takes longer than the seconds is mute.

    Raises StaleEpoch where one of them has heard of a newer controller.
    """
    names = sorted(name for name in await cluster.names() if slot_and_epoch(name) not in known)
    found = await asyncio.gather(*(_ask(cluster, name, seconds) for name in names), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


async def _ask(cluster: ClusterPort, name: str, seconds: float) -> Found:
    slot_id, epoch = slot_and_epoch(name)
    actor = await cluster.attach(name)
    if actor is None:
        return Sighting(slot_id, epoch, False), None
    try:
        async with asyncio.timeout(seconds):
            word = await actor.snapshot()
    except ActorLost:
        return Sighting(slot_id, epoch, False), None
    except StaleEpoch:
        raise
    except Exception as error:  # it may answer yet; if it doesn't, it counts as lost in the end
        log.warning("no_account", error=error, actor=slot_id, epoch=epoch)
        return Sighting(slot_id, epoch, True), actor
    return Sighting(slot_id, epoch, True, word), actor
