"""Two controllers' shells for one RayCluster: never both, and soon the other one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from orchestrator.controller.kube.lease import Lease
from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import Kind, KubeForbidden, KubePort, KubeUnreachable
from orchestrator.core.election import Standing, Terms
from orchestrator.core.errors import NotReady, SegueError, StaleEpoch
from tests.kube.emulator.server import Server
from tests.kube.fake import FakeKube
from tests.kube.test_client_contract import SOON, client_of
from tests.kube.test_mirror import Sleeper

QUICK = Terms(duration=1.5, hold=1.0, retry=0.1)


def ray_cluster(name: str = "r-segue") -> dict[str, Any]:
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "h", "image": "i"}]}}}
    spec = {"rayVersion": "2.60.0", "enableInTreeAutoscaling": False, "headGroupSpec": head, "workerGroupSpecs": []}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": spec,
    }


class Line:
    """A port whose line can be cut."""

    def __init__(self, kube: KubePort) -> None:
        self._kube = kube
        self.cut = False
        self.error: SegueError = KubeUnreachable("the line is cut")

    @property
    def namespace(self) -> str:
        return self._kube.namespace

    async def get(self, kind: Kind, name: str) -> Any:
        return await self._through(lambda: self._kube.get(kind, name))

    async def create(self, kind: Kind, body: Any) -> Any:
        return await self._through(lambda: self._kube.create(kind, body))

    async def replace(self, kind: Kind, body: Any) -> Any:
        return await self._through(lambda: self._kube.replace(kind, body))

    async def _through(self, call: Callable[[], Any]) -> Any:
        if self.cut:
            raise self.error
        return await call()


@pytest.fixture
async def kube(emulator: Server) -> AsyncIterator[KubePort]:
    client = client_of(emulator)
    await client.create(Kind.RAYCLUSTERS, ray_cluster())
    yield client
    await client.close()


def lease(kube: Any, identity: str, **more: Any) -> Lease:
    return Lease(kube, Owner(kube, "r-segue"), identity, terms=QUICK, jitter=lambda: 0.5, **more)


async def until(there: Callable[[], bool], leases: tuple[Lease, ...] = ()) -> None:
    """Looks as often as it can, and never sees two that hold it."""
    async with asyncio.timeout(SOON):
        while True:
            assert sum(each.holds for each in leases) <= 1
            if there():
                return
            await asyncio.sleep(0.005)


async def test_the_second_waits_and_takes_over_when_the_first_one_dies(kube: KubePort) -> None:
    one, two = lease(kube, "one"), lease(kube, "two")
    await one.win()
    keeping = asyncio.create_task(one.keep())
    waiting = asyncio.create_task(two.win())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * QUICK.duration):
            await until(lambda: two.holds or waiting.done(), (one, two))
    written = await kube.get(Kind.LEASES, "r-segue-controller")
    assert written is not None
    assert written["spec"]["holderIdentity"] == "one"
    assert written["metadata"]["ownerReferences"][0]["name"] == "r-segue", "it goes with the RayCluster"
    keeping.cancel()
    began = asyncio.get_running_loop().time()
    await until(lambda: two.holds, (one, two))
    assert asyncio.get_running_loop().time() - began < 3 * QUICK.duration
    await waiting
    written = await kube.get(Kind.LEASES, "r-segue-controller")
    assert written is not None
    assert (written["spec"]["holderIdentity"], written["spec"]["leaseTransitions"]) == ("two", 1)
    await asyncio.gather(keeping, return_exceptions=True)


async def test_one_that_ends_in_peace_is_followed_at_once(kube: KubePort) -> None:
    one, two = lease(kube, "one"), lease(kube, "two")
    await one.win()
    await one.release()
    assert not one.holds
    async with asyncio.timeout(QUICK.duration / 2):
        await two.win()
    assert two.holds


async def test_the_controller_that_ray_restarts_goes_on_at_once(kube: KubePort) -> None:
    await lease(kube, "one@session").win()
    again = lease(kube, "one@session")
    async with asyncio.timeout(QUICK.duration / 2):
        await again.win()
    assert again.holds


async def test_one_that_is_cut_off_holds_nothing_and_learns_that_it_was_replaced(kube: KubePort) -> None:
    line = Line(kube)
    one, two = lease(line, "one"), lease(kube, "two")
    await one.win()
    keeping = asyncio.create_task(one.keep())
    line.cut = True
    taking = asyncio.create_task(two.win())
    await until(lambda: two.holds, (one, two))
    assert one.standing is Standing.UNSURE
    assert not keeping.done(), "as long as it can't know, it goes on in Ray"
    await taking
    line.cut = False
    with pytest.raises(StaleEpoch, match="two holds the lease now"):
        async with asyncio.timeout(SOON):
            await keeping
    assert not one.holds


async def test_one_that_was_cut_off_and_not_replaced_goes_on(kube: KubePort) -> None:
    line = Line(kube)
    one = lease(line, "one")
    await one.win()
    keeping = asyncio.create_task(one.keep())
    line.cut = True
    await until(lambda: one.standing is Standing.UNSURE)
    line.cut = False
    await until(lambda: one.holds)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_right_that_is_missing_for_a_moment_does_not_cost_the_lease(kube: KubePort) -> None:
    line = Line(kube)
    one = lease(line, "one")
    await one.win()
    keeping = asyncio.create_task(one.keep())
    line.error = KubeForbidden("one may not update leases")
    line.cut = True
    await until(lambda: one.standing is Standing.UNSURE)
    line.cut = False
    await until(lambda: one.holds)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


def timed(kube: Any, identity: str, sleeper: Sleeper) -> Lease:
    return Lease(kube, Owner(kube, "r"), identity, clock=sleeper, sleep=sleeper.sleep, jitter=lambda: 0.5)


async def test_without_an_answer_it_begins_after_half_a_minute() -> None:
    kube, sleeper = FakeKube(), Sleeper()
    kube.trouble = lambda call: KubeUnreachable("away")
    mine = timed(kube, "one", sleeper)
    await mine.win()
    assert 30 <= sleeper.now < 35
    assert mine.standing is Standing.ASKING
    kube.trouble = lambda call: None
    keeping = asyncio.create_task(mine.keep())
    await until(lambda: mine.holds)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_without_the_right_it_begins_at_once_and_asks_seldom() -> None:
    kube, sleeper = FakeKube(), Sleeper()
    kube.trouble = lambda call: KubeForbidden("r may not get leases")
    mine = timed(kube, "one", sleeper)
    await mine.win()
    assert sleeper.now == 0
    keeping = asyncio.create_task(mine.keep())
    await sleeper.until(3)
    assert min(sleeper.slept) >= 60
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_another_one_that_lives_is_waited_for_and_then_named() -> None:
    kube, sleeper = FakeKube(), Sleeper()
    other = timed(kube, "other", sleeper)
    await other.win()

    async def renewed(seconds: float) -> None:
        await sleeper.sleep(seconds)
        await other._round()

    mine = Lease(kube, Owner(kube, "r"), "mine", clock=sleeper, sleep=renewed, jitter=lambda: 0.5)
    with pytest.raises(NotReady, match="other holds the lease"):
        await mine.win()
    assert 45 <= sleeper.now < 50


async def test_one_that_began_without_an_answer_ends_where_another_one_lives() -> None:
    """And not where the lease is only what a dead one left."""
    kube, sleeper = FakeKube(), Sleeper()
    other = timed(kube, "other", sleeper)
    await other.win()
    line = Line(kube)
    line.cut = True
    lives = True

    async def pause(seconds: float) -> None:
        await sleeper.sleep(seconds)
        if lives:
            await other._round()

    for lives in (True, False):
        mine = Lease(line, Owner(line, "r"), "mine", clock=sleeper, sleep=pause, jitter=lambda: 0.5)  # type: ignore[arg-type]
        line.cut = True
        await mine.win()
        assert mine.standing is Standing.ASKING
        line.cut = False
        keeping = asyncio.create_task(mine.keep())
        if lives:
            with pytest.raises(StaleEpoch):
                await asyncio.wait_for(keeping, SOON)
        else:
            await until(lambda mine=mine: mine.holds)  # type: ignore[misc]
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("call", ["create leases", "update leases"])
async def test_a_write_whose_answer_is_lost_is_found_and_kept(call: str) -> None:
    kube, sleeper = FakeKube(), Sleeper()
    lost = iter([KubeUnreachable("no answer")])
    mine = timed(kube, "one", sleeper)
    if call.startswith("update"):
        await mine.win()
    kube.lost = lambda done: next(lost, None) if done == call else None
    if call.startswith("update"):
        await mine._round()
    await mine.win()
    assert mine.holds
    assert kube.calls.count("create leases") == 1


async def test_a_lease_that_was_seen_once_and_not_renewed_is_no_sign_of_life_where_answers_stay_away() -> None:
    kube, time = FakeKube(), Sleeper()
    await lease(kube, "of a head that is gone").win()
    answers = iter([None])
    kube.trouble = lambda call: next(answers, KubeUnreachable("it is away"))
    mine = Lease(kube, Owner(kube, "r-segue"), "mine", clock=time, sleep=time.sleep)
    await mine.win()
    assert 30.0 <= time.now < 40.0
    assert not mine.holds
