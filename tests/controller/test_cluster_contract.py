"""What the controller relies on, run against the fake and against Ray, so that the fake can't lie."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from orchestrator.controller.placer import Placer
from orchestrator.controller.ports import ActorLost, ActorPort, ClusterPort, Memory, Order, actor_name, name_of
from orchestrator.controller.resources import NODE_ID
from orchestrator.core.errors import StaleEpoch, WorkerStartFailed
from orchestrator.core.planning.hosts import Host
from orchestrator.core.spec import Backend, Bind, ClusterSpec, Device, ModelSpec, PoolSpec, Role
from orchestrator.core.types import GatewayAssignment, WorkerAssignment, WorkerState
from tests.controller.fake_cluster import FakeCluster, Gate

DECODE = "m-decode-0"
WAIT = 20.0  # seconds; Ray starts a process in one or two


class Levers(Protocol):
    """What a test may do to a cluster behind the controller's back."""

    cluster: ClusterPort
    log_dir: Path

    def another(self) -> ClusterPort:
        """The same cluster, as another controller has it."""

    def fail_starts(self, slot_id: str, why: str) -> None: ...

    def hold_starts(self, slot_id: str) -> Callable[[], None]: ...

    def kill(self, slot_id: str, pid: int) -> None: ...

    def scarce(self) -> Device:
        """A device of which there is just one."""

    def add_host(self, gpus: int, rack: str, **labels: str) -> str:
        """A machine with these labels; its id."""

    def lose_host(self, host_id: str) -> None: ...

    async def occupy(self, host_id: str) -> None:
        """Somebody else takes a GPU there, till the end of the test."""


class FakeLevers:
    def __init__(self, log_dir: Path) -> None:
        self.cluster = FakeCluster(name="contract")
        self.log_dir = log_dir

    def another(self) -> ClusterPort:
        return self.cluster.another()

    def fail_starts(self, slot_id: str, why: str) -> None:
        self.cluster.start_errors[slot_id] = WorkerStartFailed(why)

    def hold_starts(self, slot_id: str) -> Callable[[], None]:
        gate: Gate = self.cluster.freeze("start", slot_id)
        return gate.open

    def kill(self, slot_id: str, pid: int) -> None:
        self.cluster.actor(slot_id).die()

    def scarce(self) -> Device:
        self.cluster.capacity = 1
        return Device.GPU

    def add_host(self, gpus: int, rack: str, **labels: str) -> str:
        host_id = f"id-{len(self.cluster.hosts)}"
        self.cluster.add_host(Host(host_id, host_id, gpus, cpus=2 * gpus, labels={"rack": rack, **labels}))
        return host_id

    def lose_host(self, host_id: str) -> None:
        self.cluster.lose_host(host_id)

    async def occupy(self, host_id: str) -> None:
        self.cluster.others[host_id] += 1


class RayLevers:
    def __init__(self, log_dir: Path, ray_nodes: Callable[..., Any], ray: Any) -> None:
        from orchestrator.controller.ray_cluster import RayCluster
        from tests.controller.standin import standin_gateway, standin_worker

        self.cluster = RayCluster("contract", standin_worker, standin_gateway)
        self.others = RayCluster("others")
        self.log_dir = log_dir
        self._ray = ray
        self._add_node = ray_nodes
        self._nodes: dict[str, Any] = {}

    def another(self) -> ClusterPort:
        return replace(self.cluster, _groups={}, _claim=None)

    def fail_starts(self, slot_id: str, why: str) -> None:
        (self.log_dir / f"{slot_id}.fail").write_text(why)

    def hold_starts(self, slot_id: str) -> Callable[[], None]:
        hold = self.log_dir / f"{slot_id}.hold"
        hold.touch()
        return hold.unlink

    def kill(self, slot_id: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def scarce(self) -> Device:
        return Device.GPU

    def add_host(self, gpus: int, rack: str, **labels: str) -> str:
        node = self._add_node(gpus, rack=rack, **labels)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def lose_host(self, host_id: str) -> None:
        self._ray.remove_node(self._nodes[host_id])

    async def occupy(self, host_id: str) -> None:
        order = worker_order(self, device=Device.GPU, hosts=(host_id,))
        await self.others.reserve(replace(order, cluster="others"), lambda _: None)


@pytest.fixture(params=["fake", pytest.param("ray", marks=pytest.mark.ray)])
async def levers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Levers]:
    made: Levers
    if request.param == "ray":
        made = RayLevers(tmp_path, request.getfixturevalue("ray_nodes"), request.getfixturevalue("local_ray"))
    else:
        made = FakeLevers(tmp_path)
    yield made
    if isinstance(made, RayLevers):
        for name in await made.others.names():
            await made.others.remove(name)
    await (last := made.another()).forget()
    for name in await last.names():
        await last.remove(name)
    assert await last.recall() is None
    assert await made.cluster.names() == frozenset()


def worker_order(
    levers: Levers, slot_id: str = DECODE, *, epoch: int = 1, device: Device = Device.CPU, **more: Any
) -> WorkerAssignment:
    values = {"tensor_parallel": 1, "pipeline_parallel": 1} | more
    return WorkerAssignment(
        cluster="contract",
        worker_id=slot_id,
        epoch=epoch,
        model="m",
        source="none",
        role=Role.DECODE,
        device=device,
        backend=Backend.MOCK,
        bind=Bind.LOOPBACK,
        log_dir=str(levers.log_dir),
        **values,
    )


async def created(levers: Levers, order: Order) -> ActorPort:
    async with asyncio.timeout(WAIT):
        await levers.cluster.reserve(order, lambda _: None)
        return await levers.cluster.create(order)


async def test_an_actor_starts_accounts_for_itself_and_stops(levers: Levers) -> None:
    order = worker_order(levers)
    actor = await created(levers, order)
    async with asyncio.timeout(WAIT):
        await actor.start()
        word = await actor.snapshot()
        assert word.state is WorkerState.READY
        assert word.actor_pid
        assert await levers.cluster.names() == {name_of(order)}
        closing = asyncio.create_task(actor.wait_closed())
        await actor.drain(3)
        assert (await actor.snapshot()).state is WorkerState.DRAINING
        assert not closing.done()
        await actor.stop()
        await closing
        await levers.cluster.remove(name_of(order))
    assert await levers.cluster.names() == frozenset()


async def test_a_gateway_reserves_nothing_and_lives_the_same_life(levers: Levers) -> None:
    order = GatewayAssignment("contract", "gateway-0", 1, "127.0.0.1:9100", str(levers.log_dir))
    actor = await created(levers, order)
    async with asyncio.timeout(WAIT):
        await actor.start()
        assert (await actor.snapshot()).state is WorkerState.READY
    assert await levers.cluster.names() == {"contract/gateway-0@1"}


async def test_it_accounts_for_itself_while_it_starts(levers: Levers) -> None:
    go_on = levers.hold_starts(DECODE)
    actor = await created(levers, worker_order(levers))
    async with asyncio.timeout(WAIT):
        starting = asyncio.create_task(actor.start())
        word = await actor.snapshot()
        assert (word.state, word.stage) == (WorkerState.STARTING, "loading weights")
        assert not starting.done()
        go_on()
        await starting


async def test_why_a_start_failed_comes_over_whole(levers: Levers) -> None:
    levers.fail_starts(DECODE, "no weights there")
    actor = await created(levers, worker_order(levers))
    async with asyncio.timeout(WAIT):
        with pytest.raises(WorkerStartFailed, match="no weights there"):
            await actor.start()


async def test_a_killed_process_is_noticed_at_once_by_whoever_waits(levers: Levers) -> None:
    actor = await created(levers, worker_order(levers))
    async with asyncio.timeout(WAIT):
        await actor.start()
        pid = (await actor.snapshot()).actor_pid
        closing = asyncio.create_task(actor.wait_closed())
        await asyncio.sleep(0)
        levers.kill(DECODE, pid)
    async with asyncio.timeout(2):
        with pytest.raises(ActorLost, match="its process is gone"):
            await closing
        for question in (actor.snapshot, actor.start, actor.stop):
            with pytest.raises(ActorLost):
                await question()


async def test_removing_ends_an_actor_that_runs_and_may_be_repeated(levers: Levers) -> None:
    order = worker_order(levers)
    actor = await created(levers, order)
    async with asyncio.timeout(WAIT):
        await actor.start()
        closing = asyncio.create_task(actor.wait_closed())
        await asyncio.sleep(0)
        for _ in range(2):
            await levers.cluster.remove(name_of(order))
        with pytest.raises(ActorLost):
            await closing
        await levers.cluster.remove(actor_name("contract", "never-there", 1))


async def test_two_fillings_of_a_slot_are_two_actors(levers: Levers) -> None:
    for epoch in (1, 2):
        actor = await created(levers, worker_order(levers, epoch=epoch))
        async with asyncio.timeout(WAIT):
            await actor.start()
    await levers.cluster.remove(actor_name("contract", DECODE, 1))
    assert await levers.cluster.names() == {f"contract/{DECODE}@2"}
    async with asyncio.timeout(WAIT):
        assert (await actor.snapshot()).state is WorkerState.READY


async def test_a_reservation_waits_for_room_says_why_and_is_met_when_there_is_some(levers: Levers) -> None:
    device = levers.scarce()
    first = worker_order(levers, device=device)
    await created(levers, first)
    told: list[str] = []
    waiting = asyncio.create_task(
        levers.cluster.reserve(worker_order(levers, "m-decode-1", device=device), told.append)
    )
    async with asyncio.timeout(WAIT):
        while not told:  # noqa: ASYNC110 - the reason comes by a plain call
            await asyncio.sleep(0.02)
        assert "waits for" in told[0]
        assert "in use" in told[0]
        assert not waiting.done()
        await levers.cluster.remove(name_of(first))
        await waiting


async def test_a_reservation_given_up_leaves_nothing(levers: Levers) -> None:
    device = levers.scarce()
    await created(levers, worker_order(levers, device=device))
    second = worker_order(levers, "m-decode-1", device=device)
    waiting = asyncio.create_task(levers.cluster.reserve(second, lambda _: None))
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(WAIT):
        await asyncio.wait({waiting})
        await levers.cluster.remove(name_of(second))
    assert name_of(second) not in await levers.cluster.names()


async def reserved(levers: Levers, order: WorkerAssignment) -> None:
    async with asyncio.timeout(WAIT):
        await levers.cluster.reserve(order, lambda _: None)


async def host_of(levers: Levers, host_id: str) -> Host:
    [found] = [host for host in (await levers.cluster.topology()).hosts if host.host_id == host_id]
    return found


async def host_ids(levers: Levers) -> set[str]:
    return {host.host_id for host in (await levers.cluster.topology()).hosts}


async def free(levers: Levers, host_id: str, gpus: int) -> None:
    """Until so many are there for the cluster: what was given back a moment ago may still count as taken."""
    async with asyncio.timeout(WAIT):
        while (await host_of(levers, host_id)).gpus != gpus:  # noqa: ASYNC110 - Ray gives no event
            await asyncio.sleep(0.05)


async def test_machines_are_told_with_their_labels_and_what_there_is_for_this_cluster(levers: Levers) -> None:
    host_id = levers.add_host(4, "r7")
    before = await levers.cluster.topology()
    host = await host_of(levers, host_id)
    assert len({each.name for each in before.hosts}) == len(before.hosts) >= 2
    assert (host.gpus, host.cpus, host.labels["rack"]) == (4, 8.0, "r7")
    assert all(each.here for each in before.hosts)
    assert before.reserved == {}

    await reserved(levers, worker_order(levers, device=Device.GPU, tensor_parallel=2, hosts=(host_id,)))
    await reserved(levers, worker_order(levers, "m-decode-1", device=Device.GPU, share=0.5, hosts=(host_id,)))
    await reserved(levers, worker_order(levers, "m-decode-2", pipeline_parallel=2, hosts=(host_id, host_id)))
    taken = await levers.cluster.topology()
    assert taken.reserved == {DECODE: (host_id,) * 2, "m-decode-1": (host_id,), "m-decode-2": (host_id,) * 2}
    await free(levers, host_id, 4)
    async with asyncio.timeout(WAIT):
        await levers.occupy(host_id)
    await free(levers, host_id, 3)

    levers.lose_host(host_id)
    async with asyncio.timeout(WAIT):
        while host_id in await host_ids(levers):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def own(role: Role) -> dict[str, str]:
    """Labels of hosts that are one pool's."""
    return {"segue.io/model": "m", "segue.io/role": role.value}


async def test_pools_with_hosts_of_their_own_are_never_on_each_others(levers: Levers) -> None:
    """By the plan where there is one for a slot, and where the machinery chooses: both hosts would take any of them."""
    large, small = levers.add_host(4, "r0", **own(Role.PREFILL)), levers.add_host(2, "r0", **own(Role.DECODE))
    roles = (Role.PREFILL, Role.DECODE)
    pools = {role: PoolSpec(role, 1, Device.GPU) for role in roles}
    spec = ClusterSpec("contract", (ModelSpec("m", "none", pools),), bind=Bind.NODE)
    placer = Placer(spec, levers.cluster)
    orders = [
        replace(worker_order(levers, f"m-{role}-{slot}", device=Device.GPU), role=role)
        for slot in ("0", "spare-0")  # of spares no plan knows
        for role in roles
    ]
    async with asyncio.timeout(2 * WAIT):
        met = [await placer.reserve(order, lambda _: None) for order in orders]
    assert [bool(order.hosts) for order in met if isinstance(order, WorkerAssignment)] == [True, True, False, False]
    there = (await levers.cluster.topology()).reserved
    assert there == {
        "m-prefill-0": (large,),
        "m-prefill-spare-0": (large,),
        "m-decode-0": (small,),
        "m-decode-spare-0": (small,),
    }
    waits = asyncio.create_task(
        placer.reserve(replace(worker_order(levers, "m-decode-spare-1", device=Device.GPU)), lambda _: None)
    )
    telling = await waits_for_room(levers, waits)
    assert "m-decode-spare-1" not in telling


async def waits_for_room(levers: Levers, waits: asyncio.Task[Order]) -> Mapping[str, tuple[str, ...]]:
    """What is reserved once the machinery has found no room for it; then it is given up."""
    while not any("spare-1" in name for name in await levers.cluster.names()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    done, _ = await asyncio.wait({waits}, timeout=2)
    assert not done
    waits.cancel()
    await asyncio.wait({waits})
    return (await levers.cluster.topology()).reserved


async def test_the_machinery_keeps_off_hosts_that_are_others_or_about_to_go(levers: Levers) -> None:
    others, closing = levers.add_host(4, "r0", **own(Role.PREFILL)), levers.add_host(4, "r0")
    free = levers.add_host(1, "r0", **{"segue.io/role": "serve"})
    selector = {"segue.io/model": "!in(m,x)", NODE_ID: f"!in({closing})", "rack": "r0"}
    await reserved(levers, worker_order(levers, device=Device.GPU, selector=selector))
    assert (await levers.cluster.topology()).reserved == {DECODE: (free,)}
    assert others not in (await levers.cluster.topology()).reserved[DECODE]


async def test_of_a_slot_that_is_filled_twice_the_newest_place_counts(levers: Levers) -> None:
    old, new = levers.add_host(1, "r0"), levers.add_host(1, "r0")
    for epoch, host_id in ((9, old), (10, new)):
        await reserved(levers, worker_order(levers, epoch=epoch, device=Device.GPU, hosts=(host_id,)))
    assert (await levers.cluster.topology()).reserved == {DECODE: (new,)}
    await free(levers, old, 0)
    await levers.cluster.remove(actor_name("contract", DECODE, 9))
    await free(levers, old, 1)


async def test_a_gang_is_on_the_hosts_that_its_order_says_stage_by_stage(levers: Levers) -> None:
    first, second = levers.add_host(4, "r0"), levers.add_host(4, "r1")
    for slot, host_id in (("m-decode-0", second), ("m-decode-1", first)):
        await reserved(levers, worker_order(levers, slot, device=Device.GPU, tensor_parallel=2, hosts=(host_id,)))
    pipeline = worker_order(
        levers, "m-decode-2", device=Device.GPU, tensor_parallel=2, pipeline_parallel=2, hosts=(second, first)
    )
    await reserved(levers, pipeline)
    assert (await levers.cluster.topology()).reserved == {
        "m-decode-0": (second, second),
        "m-decode-1": (first, first),
        "m-decode-2": (second, second, first, first),
    }


async def test_a_gang_waits_for_its_host_though_another_has_room(levers: Levers) -> None:
    full = levers.add_host(2, "r0")
    levers.add_host(2, "r1")
    await reserved(levers, worker_order(levers, device=Device.GPU, hosts=(full,)))
    order = worker_order(levers, "m-decode-1", device=Device.GPU, tensor_parallel=2, hosts=(full,))
    told: list[str] = []
    waiting = asyncio.create_task(levers.cluster.reserve(order, told.append))
    name = (await host_of(levers, full)).name
    async with asyncio.timeout(WAIT):
        while not told:  # noqa: ASYNC110 - the reason comes by a plain call
            await asyncio.sleep(0.02)
        assert f"on {name}" in told[0]
        assert "m-decode-1" not in (await levers.cluster.topology()).reserved
        await levers.cluster.remove(actor_name("contract", DECODE, 1))
        await waiting
    assert (await levers.cluster.topology()).reserved == {"m-decode-1": (full, full)}


async def test_where_any_host_would_do_it_has_to_be_of_the_kinds_that_the_order_names(levers: Levers) -> None:
    levers.add_host(2, "r0")
    order = worker_order(levers, device=Device.GPU, gpu=("H200", "NVIDIA-H200"))
    told: list[str] = []
    waiting = asyncio.create_task(levers.cluster.reserve(order, told.append))
    async with asyncio.timeout(WAIT):
        while not told:  # noqa: ASYNC110 - the reason comes by a plain call
            await asyncio.sleep(0.02)
    assert (await levers.cluster.topology()).reserved == {}
    waiting.cancel()
    await asyncio.wait({waiting})
    await levers.cluster.remove(name_of(order))


async def test_what_one_controller_remembers_the_next_recalls(levers: Levers) -> None:
    assert await levers.cluster.recall() is None
    first, then = Memory("{}", epoch=3, listen="127.0.0.1:9100"), Memory('{"a": "ä"}', previous_json="{}", epoch=4)
    term = await levers.cluster.claim()
    for memory in (first, then):
        await levers.cluster.remember(memory, term)
        assert await levers.another().recall() == memory
    after = levers.another()
    next_term = await after.claim()
    assert next_term > term
    assert await after.recall() == then
    await after.remember(first, next_term)
    assert await levers.cluster.recall() == first


async def test_of_many_that_claim_at_once_each_has_a_term_of_its_own_and_the_highest_goes(levers: Levers) -> None:
    rivals = [levers.another() for _ in range(5)]
    terms = await asyncio.gather(*(rival.claim() for rival in rivals))
    assert len(set(terms)) == len(rivals)
    for term, rival in zip(terms, rivals, strict=True):
        if term == max(terms):
            await rival.remember(Memory("newest"), term)
        else:
            with pytest.raises(StaleEpoch, match=f"term {term}"):
                await rival.remember(Memory("stale"), term)
    assert await levers.cluster.recall() == Memory("newest")


async def test_a_controller_whose_term_is_stale_changes_nothing_any_more(levers: Levers) -> None:
    order, late = worker_order(levers), worker_order(levers, "m-decode-1")
    await levers.cluster.claim()
    await created(levers, order)
    await levers.cluster.reserve(late, lambda _: None)
    before = await levers.cluster.names()
    await levers.another().claim()
    for forbidden in (
        levers.cluster.reserve(worker_order(levers, "m-decode-2"), lambda _: None),
        levers.cluster.create(late),
        levers.cluster.remove(name_of(order)),
    ):
        with pytest.raises(StaleEpoch):
            await forbidden
    assert await levers.cluster.names() == before


async def test_a_controller_of_a_cluster_that_was_taken_down_is_stale_in_the_next_one_too(levers: Levers) -> None:
    term = await levers.cluster.claim()
    await levers.cluster.remember(Memory("{}"), term)
    for _ in range(2):
        await levers.another().forget()
    assert await levers.another().recall() is None
    with pytest.raises(StaleEpoch):
        await levers.cluster.remember(Memory("{}"), term)
    assert await levers.another().claim() == term
    with pytest.raises(StaleEpoch):
        await levers.cluster.remember(Memory("{}"), term)
    with pytest.raises(StaleEpoch):
        await levers.cluster.remove(actor_name("contract", DECODE, 1))


async def test_another_controller_attaches_to_an_actor_and_joins_its_start(levers: Levers) -> None:
    go_on = levers.hold_starts(DECODE)
    order = worker_order(levers)
    await levers.cluster.claim()
    actor = await created(levers, order)
    starting = asyncio.create_task(actor.start())
    async with asyncio.timeout(WAIT):
        pid = (await actor.snapshot()).actor_pid
        after = levers.another()
        await after.claim()
        assert await after.attach(actor_name("contract", DECODE, 7)) is None
        attached = await after.attach(name_of(order))
        assert attached is not None
        joining = asyncio.create_task(attached.start())
        starting.cancel()  # as where its controller dies
        assert (await attached.snapshot()).state is WorkerState.STARTING
        go_on()
        await joining
        await attached.start()
        word = await attached.snapshot()
        assert (word.state, word.actor_pid) == (WorkerState.READY, pid)
        for order_of_the_old in (actor.start, actor.snapshot, actor.stop, lambda: actor.drain(0)):
            with pytest.raises(StaleEpoch, match="term 2, not the one of term 1"):
                await order_of_the_old()
        assert (await attached.snapshot()).state is WorkerState.READY
        levers.kill(DECODE, pid)
        while await after.attach(name_of(order)) is not None:  # noqa: ASYNC110 - Ray gives no event
            await asyncio.sleep(0.02)


async def test_why_a_start_failed_is_said_to_whoever_asks_later_too(levers: Levers) -> None:
    levers.fail_starts(DECODE, "no weights there")
    actor = await created(levers, worker_order(levers))
    async with asyncio.timeout(WAIT):
        for _ in range(2):
            with pytest.raises(WorkerStartFailed, match="no weights there"):
                await actor.start()
        assert (await actor.snapshot()).state is WorkerState.FAILED
