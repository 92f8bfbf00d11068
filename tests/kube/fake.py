"""An API server in memory that stops where a test wants it to."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.controller.kube.ports import Change, Expired, Kind, KubeConflict, Listing, Object, Operation
from tests.kube.emulator.patches import PatchError, patched
from tests.kube.emulator.watching import wanted


@dataclass
class Gate:
    """Where calls stop: ``reached`` is set by the first that comes, all go on once ``open`` is."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)


class FakeKube:
    """``KubePort`` without a server.

    ``trouble`` is asked before each call, as ``VERB plural``, for what it raises instead; ``lost`` after it was carried
    out. ``gates`` stop calls by the same words.
    """

    def __init__(self, namespace: str = "llm") -> None:
        self._namespace = namespace
        self._things: dict[tuple[Kind, str], dict[str, Any]] = {}
        self._history: list[tuple[int, Kind, str, dict[str, Any]]] = []
        self._versions = itertools.count(100)
        self._version = next(self._versions)
        self._oldest = 0
        self._era = 0
        self._changed = asyncio.Condition()
        self._breaks: Exception | None = None
        self.calls: list[str] = []
        self.trouble: Callable[[str], Exception | None] = lambda call: None
        self.lost: Callable[[str], Exception | None] = lambda call: None
        self.gates: dict[str, Gate] = {}

    @property
    def namespace(self) -> str:
        return self._namespace

    def gate(self, call: str) -> Gate:
        """Calls of these words stop from now on."""
        return self.gates.setdefault(call, Gate())

    async def get(self, kind: Kind, name: str) -> Object | None:
        await self._enter("get", kind)
        return copy.deepcopy(self._things.get((kind, name)))

    async def list(self, kind: Kind, selector: str = "") -> Listing:
        await self._enter("list", kind)
        found = [
            copy.deepcopy(each) for (of, _), each in sorted(self._things.items(), key=lambda p: p[0][1]) if of is kind
        ]
        return Listing(tuple(each for each in found if self._wanted(kind, each, selector)), str(self._version))

    async def create(self, kind: Kind, body: Object) -> Object:
        await self._enter("create", kind)
        name = body["metadata"]["name"]
        if (kind, name) in self._things:
            raise KubeConflict("it is there already", where=name)
        return await self._store("create", "ADDED", kind, copy.deepcopy(dict(body)))

    async def patch(self, kind: Kind, name: str, operations: Sequence[Operation]) -> Object:
        await self._enter("patch", kind)
        try:
            new = patched(self._things[kind, name], [dict(each) for each in operations])
        except PatchError as error:
            raise KubeConflict(f"test failed: {error}", where=name) from error
        return await self._store("patch", "MODIFIED", kind, new)

    async def replace(self, kind: Kind, body: Object) -> Object:
        await self._enter("update", kind)
        now = self._things[kind, body["metadata"]["name"]]
        if body["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"]:
            raise KubeConflict("somebody wrote it in between", where=body["metadata"]["name"])
        return await self._store("update", "MODIFIED", kind, copy.deepcopy(dict(body)))

    async def delete(self, kind: Kind, name: str) -> None:
        """As somebody else would."""
        await self._store("delete", "DELETED", kind, self._things.pop((kind, name)))

    async def watch(self, kind: Kind, selector: str, since: str) -> AsyncIterator[Change]:
        await self._enter("watch", kind)
        era, seen = self._era, int(since)
        if seen < self._oldest:
            raise Expired("too old", where=kind.full)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda seen=seen: self._era != era or self._version > seen)
                news = [each for each in self._history if each[0] > seen]
                seen = self._version
            for _, of, type_, thing in news:
                if of is kind and self._wanted(kind, thing, selector):
                    yield Change(type_, copy.deepcopy(thing))
            if self._era != era:
                if self._breaks:
                    raise self._breaks
                return

    async def end_watches(self, error: Exception | None = None) -> None:
        """As a server that has enough of them, or whose connections break."""
        async with self._changed:
            self._breaks = error
            self._era += 1
            self._changed.notify_all()

    def forget(self) -> None:
        """What happened until now: a watch from before has expired."""
        self._oldest = self._version

    async def _enter(self, verb: str, kind: Kind) -> None:
        call = f"{verb} {kind.plural}"
        self.calls.append(call)
        if gate := self.gates.get(call):
            gate.reached.set()
            await gate.open.wait()
        if error := self.trouble(call):
            raise error

    async def _store(self, verb: str, type_: str, kind: Kind, thing: dict[str, Any]) -> Object:
        self._version = next(self._versions)
        thing["metadata"] = {**thing["metadata"], "resourceVersion": str(self._version)}
        if kind.namespaced:
            thing["metadata"]["namespace"] = self._namespace
        thing["metadata"].setdefault("uid", f"uid-{self._version}")
        if type_ != "DELETED":
            self._things[kind, thing["metadata"]["name"]] = thing
        async with self._changed:
            self._history.append((self._version, kind, type_, thing))
            self._changed.notify_all()
        if error := self.lost(f"{verb} {kind.plural}"):
            raise error
        return copy.deepcopy(thing)

    def _wanted(self, kind: Kind, thing: Object, selector: str) -> bool:
        namespace = self._namespace if kind.namespaced else ""
        return wanted(dict(thing), namespace, {"labelSelector": selector})
