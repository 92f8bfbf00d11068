"""Counts of worker pods beside a KubeRay that ends pods of its own choice where it is told fewer than there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.slots import Kind, ObservedActor, Slot
from orchestrator.core.spec import ClusterSpec, Device, ModelSpec, PoolSpec, Role
from orchestrator.core.types import ActorSnapshot, WorkerState
from orchestrator.core.worker_groups import Group, Pod, Scaling, Wanted, scaled, wanted_of

POOL = ("m", Role.DECODE)
NONE = frozenset[str]()


def group(replicas: int = 2, least: int = 0, most: int = 9, hosts: int = 1, *to_delete: str) -> Group:
    return Group("g", POOL, replicas, least, most, hosts, to_delete)


def pods(*words: str) -> list[Pod]:
    """``a b`` are two that are busy; with a letter more: empty, leaving, stuck, coming."""
    made = {
        "": {"joined": True, "busy": True},
        "e": {"joined": True},
        "l": {"joined": True, "busy": True, "leaving": True},
        "s": {"stuck": "0/4 nodes are available"},
        "c": {},
    }
    return [Pod(word[0], "g", **made[word[1:]]) for word in words]


def wanted(count: int, *, together: int = 1, moving: bool = False) -> Wanted:
    return Wanted({POOL: count}, {POOL: together}, frozenset({POOL}) if moving else frozenset())


def one(told: Group, there: Sequence[Pod], what: Wanted, closed: str = "", gone: str = "") -> Scaling:
    [found] = scaled([told], there, what, closed=frozenset(closed), gone=frozenset(gone))
    return found


def test_more_are_asked_for_at_once_and_are_on_their_way_until_they_joined() -> None:
    more = one(group(2), pods("a", "b"), wanted(3, moving=True))
    assert (more.replicas, more.to_delete, more.coming) == (3, (), True)
    assert one(group(3), pods("a", "b", "cc"), wanted(3, moving=True)).coming
    there = one(group(3), pods("a", "b", "ce"), wanted(3, moving=True))
    assert (there.coming, there.changes) == (False, False)


def test_no_more_than_the_groups_most_and_why_is_said() -> None:
    more = one(group(2, most=2), pods("a", "b"), wanted(3, moving=True))
    assert (more.changes, more.coming) == (False, False)
    assert more.lacks == "worker group g would need 3 replicas, and its maxReplicas is 2"


def test_a_pod_for_which_there_is_no_node_is_nothing_to_wait_for() -> None:
    more = one(group(3), pods("a", "b", "cs"), wanted(3, moving=True))
    assert (more.coming, more.lacks) == (False, "pod c has no node: 0/4 nodes are available")


def test_what_goes_is_empty_and_closed_before_and_named() -> None:
    there = pods("a", "be", "ce")
    first = one(group(3), there, wanted(1))
    assert (first.changes, first.closing) == (False, {"b", "c"})
    second = one(group(3), there, wanted(1), closed="c")
    assert (second.replicas, second.to_delete, second.closing) == (2, ("c",), {"b", "c"})


def test_what_never_joined_goes_first() -> None:
    fewer = one(group(4), pods("ae", "b", "cc", "ds"), wanted(2))
    assert (fewer.replicas, fewer.to_delete) == (2, ("d", "c"))


@pytest.mark.parametrize(
    ("there", "what"),
    [
        (pods("a", "b", "c"), wanted(2)),  # a replica that is to go is still there
        (pods("a", "b", "ce"), wanted(2, moving=True)),  # one waits for its place, or leaves
    ],
)
def test_none_goes_yet(there: list[Pod], what: Wanted) -> None:
    assert not one(group(3), there, what, closed="abc").changes


def test_one_that_somebody_ends_is_the_one_that_goes() -> None:
    """Its pod counts till it is gone, and would then be made anew."""
    there = [*pods("a", "be"), replace(pods("ce")[0], leaving=True)]
    fewer = one(group(3), there, wanted(2), closed="bc")
    assert (fewer.replicas, fewer.to_delete) == (2, ("c",))


def test_never_fewer_than_there_are_pods_whoever_said_so() -> None:
    assert one(group(1), pods("a", "b", "c"), wanted(2)).replicas == 3
    assert one(group(1), pods("a", "b", "ce"), wanted(2), closed="c").to_delete == ("c",)


def test_a_name_stays_until_its_pod_has_long_been_gone() -> None:
    ending = group(1, 0, 9, 1, "b")
    assert not one(ending, pods("a", "bl"), wanted(1)).changes
    assert not one(ending, pods("a"), wanted(1)).changes
    assert one(ending, pods("a"), wanted(1), gone="b").to_delete == ()


def test_a_pod_that_serves_is_not_to_be_ended_by_name_either() -> None:
    saved = one(group(1, 0, 9, 1, "b"), pods("a", "b"), wanted(2))
    assert (saved.replicas, saved.to_delete) == (2, ())


def test_what_the_chart_asks_for_stays_whether_or_not_it_is_used() -> None:
    """It is one configuration ahead: its pods come before ``segue upgrade`` is told."""
    assert not one(group(4, least=4), pods("a", "b", "ce", "de"), wanted(2), closed="cd").changes
    assert one(group(0, least=2), [], wanted(1)).replicas == 2


def test_shares_of_one_gpu_come_together() -> None:
    assert one(group(2), pods("a", "b"), wanted(7, together=3)).replicas == 3
    assert not one(group(3), pods("a", "b", "c"), wanted(8, together=3)).changes


def test_pods_of_one_replica_go_together() -> None:
    def of(name: str, replica: str, *, busy: bool) -> Pod:
        return Pod(name, "g", joined=True, busy=busy, replica=replica)

    labelled = [of("a", "x", busy=True), of("b", "x", busy=False), of("c", "y", busy=False), of("d", "y", busy=False)]
    fewer = one(group(2, hosts=2), labelled, wanted(1), closed="bcd")
    assert (fewer.replicas, fewer.to_delete) == (1, ("c", "d"))
    plain = [replace(pod, replica="") for pod in labelled]
    assert one(group(2, hosts=2), plain, wanted(1), closed="bcd").to_delete == ("b", "c")


def test_two_groups_of_one_pool_are_somebodys_own() -> None:
    found = scaled([group(), replace(group(), name="h")], [], wanted(9), closed=NONE, gone=NONE)
    assert not any(each.changes for each in found)
    assert found[0].lacks == "2 worker groups are for m decode: all left alone"


def test_what_is_wanted_counts_spares_and_what_still_moves() -> None:
    pools = {
        Role.PREFILL: PoolSpec(Role.PREFILL, 1, Device.GPU),
        Role.DECODE: PoolSpec(Role.DECODE, 2, Device.GPU, share=0.3),
        Role.SERVE: PoolSpec(Role.SERVE, 1),
    }
    spec = ClusterSpec("c", (ModelSpec("m", "none", pools),))
    slots = [Slot(f"m-{role}-0", Kind.WORKER, "m", role) for role in pools]
    slots += [Slot("m-decode-spare-0", Kind.WORKER, "m", Role.DECODE), Slot("gateway-0", Kind.GATEWAY)]

    def actor(slot: Slot, state: WorkerState, *, leaving: bool = False) -> ObservedActor:
        return ObservedActor(slot, 1, ActorSnapshot(state), 0.0, 0.0, leaving=leaving)

    actors = [actor(slot, WorkerState.READY) for slot in slots]
    assert wanted_of(spec, slots, actors).moving == frozenset()
    actors[3] = actor(slots[3], WorkerState.PENDING)
    actors.append(actor(Slot("m-prefill-1", Kind.WORKER, "m", Role.PREFILL), WorkerState.DRAINING, leaving=True))
    found = wanted_of(spec, slots, [each for each in actors if each.slot.slot_id != "m-serve-0"])
    assert found.replicas == {("m", Role.PREFILL): 1, ("m", Role.DECODE): 2, ("m", Role.SERVE): 1}
    assert found.together == {("m", Role.PREFILL): 1, ("m", Role.DECODE): 3}
    assert found.moving == {("m", Role.PREFILL), ("m", Role.DECODE), ("m", Role.SERVE)}, "one waits in its backoff"


# Beside KubeRay, in any order of things


@dataclass
class Kube:
    """One group, its pods, and KubeRay.

    ``lost``: pods that KubeRay ended while something was on them. Not counted: while somebody else's count stands that
    is too low, and what began on a pod in the moment in which that joined and a look was under way.
    """

    chance: Random
    hosts: int
    group: Group
    want: int
    version: int = 0
    names: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)
    serves: dict[int, tuple[str, ...]] = field(default_factory=dict)  # by replica the pods that it is on
    closed: frozenset[str] = NONE
    waiting: bool = False  # something waited before anything was closed: it is met wherever there is room
    joining: set[str] = field(default_factory=set)
    meddled: bool = False
    lost: list[str] = field(default_factory=list)

    def busy(self) -> set[str]:
        return {name for names in self.serves.values() for name in names}

    def seen(self) -> list[Pod]:
        busy = self.busy()
        return [replace(pod, busy=pod.name in busy) for pod in self.pods.values()]

    def moving(self) -> bool:
        return len(self.serves) != self.want

    # What happens

    def reconcile(self) -> None:
        """As KubeRay does it where no autoscaler is on."""
        named = {name for name in self.group.to_delete if name in self.pods}
        for name in named:
            self.end(name)
        rest = [name for name in self.pods if name not in named]
        expected = min(max(self.group.replicas, self.group.least), self.group.most) * self.hosts
        for _ in range(expected - len(rest)):
            self.names += 1
            self.pods[f"p{self.names}"] = Pod(f"p{self.names}", "g")
        for name in self.chance.sample(rest, max(0, len(rest) - expected)):
            self.end(name)

    def end(self, name: str) -> None:
        excused = self.meddled or name in self.joining
        if name in self.busy() and not (self.pods[name].leaving or excused):
            self.lost.append(name)
        self.pods[name] = replace(self.pods[name], leaving=True)

    def vanish(self) -> None:
        for name in [name for name, pod in self.pods.items() if pod.leaving][:1]:
            del self.pods[name]
            self.serves = {index: names for index, names in self.serves.items() if name not in names}

    def join(self) -> None:
        for name, pod in self.pods.items():
            if not (pod.joined or pod.leaving):
                self.pods[name] = replace(pod, joined=True, stuck="")
                self.joining.add(name)
                return

    def stick(self) -> None:
        for name, pod in self.pods.items():
            if not (pod.joined or pod.leaving):
                self.pods[name] = replace(pod, stuck="no node")

    def place(self) -> None:
        """A replica that waits gets its pods, if there are any that are open."""
        busy, shut = self.busy(), NONE if self.waiting else self.closed
        free = [
            name
            for name, pod in self.pods.items()
            if pod.joined and not pod.leaving and name not in busy | shut | (set(self.group.to_delete) - self.joining)
        ]
        waits = [index for index in range(self.want) if index not in self.serves]
        if waits and len(free) >= self.hosts:
            self.serves[waits[0]] = tuple(self.chance.sample(free, self.hosts))

    def fail(self) -> None:
        for index in list(self.serves)[:1]:
            del self.serves[index]

    def drain(self) -> None:
        for index in [index for index in self.serves if index >= self.want][:1]:
            del self.serves[index]

    def want_other(self) -> None:
        self.want = self.chance.randint(0, 5)

    def touch(self) -> None:
        """Somebody writes what has nothing to do with it."""
        self.version += 1

    def raise_(self) -> None:
        self.group = replace(self.group, replicas=self.group.replicas + self.chance.randint(1, 2))
        self.version += 1

    def lower(self) -> None:
        """Somebody takes the count back, as an older chart's upgrade would."""
        self.group = replace(self.group, replicas=max(0, self.group.replicas - self.chance.randint(1, 3)))
        self.version += 1
        self.meddled = True

    def look(self, between: Sequence[str] = ()) -> None:
        """Decides by what it sees, and writes it a while later; then again, where somebody was quicker."""
        self.joining.clear()
        for _ in range(3):
            self.waiting = self.moving()
            told, what = self.group, Wanted({POOL: self.want}, {}, frozenset({POOL}) if self.moving() else NONE)
            gone = frozenset(name for name in told.to_delete if name not in self.pods)
            [first] = scaled([told], self.seen(), what, closed=NONE, gone=gone)
            could = self.chance.random() < 0.8  # or nobody knows what is on them
            closing = {*first.closing, *first.to_delete, *(name for name, pod in self.pods.items() if pod.leaving)}
            self.closed = frozenset(closing - self.busy()) if could else NONE
            [now] = scaled([told], self.seen(), what, closed=self.closed, gone=gone)
            version = self.version
            for step in between:
                getattr(self, step)()
            between = ()
            if not now.changes:
                return
            if self.version == version:
                assert told.least <= now.replicas <= max(told.most, told.least)
                self.group = replace(self.group, replicas=now.replicas, to_delete=now.to_delete)
                self.version += 1
                self.meddled = False
                return


QUIET = ("reconcile", "join", "place", "drain", "vanish")
BETWEEN = ("reconcile", "join", "drain", "place", "place", "touch", "raise_", "vanish", "fail")
ANY = (*QUIET, "stick", "fail", "want_other", "touch", "raise_")
LOOK = st.tuples(st.just("look"), st.lists(st.sampled_from(BETWEEN), max_size=3))


def run(kube: Kube, steps: Sequence[str | tuple[str, list[str]]]) -> None:
    for step in steps:
        if isinstance(step, tuple):
            kube.look(step[1])
        else:
            getattr(kube, step)()


def settle(kube: Kube) -> None:
    for _ in range(60):
        kube.look()
        for step in QUIET:
            getattr(kube, step)()


def kube_of(seed: int, hosts: int, want: int, least: int) -> Kube:
    kube = Kube(Random(seed), hosts, group(want, least, 7, hosts), want)
    settle(kube)
    return kube


SIZES = (st.integers(0, 999), st.sampled_from([1, 1, 2]), st.integers(0, 4), st.integers(0, 2))


@settings(max_examples=300, deadline=None)
@given(*SIZES, st.lists(st.one_of(LOOK, st.sampled_from(ANY)), max_size=30))
def test_no_pod_that_serves_is_ever_ended_and_counts_come_to_be_what_is_wanted(
    seed: int, hosts: int, want: int, least: int, steps: list[str | tuple[str, list[str]]]
) -> None:
    kube = kube_of(seed, hosts, want, least)
    run(kube, steps)
    settle(kube)
    assert kube.lost == []
    expected = max(kube.want, least)
    assert (kube.group.replicas, len(kube.pods), kube.group.to_delete) == (expected, expected * hosts, ())
    assert len(kube.serves) == kube.want


@settings(max_examples=200, deadline=None)
@given(*SIZES, st.lists(st.one_of(LOOK, st.sampled_from((*ANY, "lower"))), max_size=30))
def test_whatever_others_write_it_comes_to_be_what_is_wanted_and_stays_so(
    seed: int, hosts: int, want: int, least: int, steps: list[str | tuple[str, list[str]]]
) -> None:
    kube = kube_of(seed, hosts, want, least)
    run(kube, steps)
    settle(kube)
    assert kube.lost == []
    expected = max(kube.want, least)
    assert (kube.group.replicas, len(kube.pods), kube.group.to_delete) == (expected, expected * hosts, ())
    assert len(kube.serves) == kube.want
    before, lost = kube.version, len(kube.lost)
    settle(kube)
    assert (kube.version, len(kube.lost)) == (before, lost)
