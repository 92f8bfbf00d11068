"""A list of objects that is kept: listed once, then watched, and listed anew where the server forgot too much."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from orchestrator.controller.kube.ports import Expired, Kind, KubePort, Object
from orchestrator.controller.kube.trouble import Trouble, understood
from orchestrator.core.errors import SegueError
from orchestrator.telemetry import logs

log = logs.events("controller.kube")
_FORGETS = 1.0  # seconds
_QUICK = 1.0  # seconds; a watch that ends sooner has its next one wait


class Mirror:
    """Objects of one kind, by label. What it holds stands while the server is away; ``changed`` tells of any change.

    ``run`` goes on until it is cancelled. ``jitter`` spreads many clients' returns: from 0 to 1. ``clock`` and
    ``sleep`` are of the same seconds.
    """

    def __init__(
        self,
        kube: KubePort,
        kind: Kind,
        selector: str = "",
        *,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kube = kube
        self._kind = kind
        self._selector = selector
        self._changed = changed
        self._clock = clock
        self._jitter = jitter
        self._sleep = sleep
        self._items: dict[str, Object] = {}
        self._version = ""
        self._listed = asyncio.Event()
        self._forgotten = 0  # times in a row that a watch began too late
        self._trouble = Trouble(f"watch_{kind.plural}", jitter)

    @property
    def error(self) -> SegueError | None:
        """What is in the way now."""
        return self._trouble.error

    @property
    def items(self) -> tuple[Object, ...]:
        """As they were last told, by name."""
        return tuple(self._items[name] for name in sorted(self._items))

    async def fresh(self, seconds: float) -> bool:
        """Whether it was listed, once or again, waiting that long for it. ``error`` says what is in the way."""
        try:
            async with asyncio.timeout(seconds):
                await self._listed.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Keeps it."""
        while True:
            try:
                await self._turn()
                continue
            except Expired:
                self._version = ""
                self._forgotten += 1  # one that forgets at once must not be listed in a loop
                delay = min(_FORGETS * (self._forgotten - 1), _FORGETS * 10)
            except SegueError as error:
                delay = self._trouble.hit(error)
            except Exception as error:  # nobody looks after this task: it would be a list that stands still for good
                self._version = ""
                delay = self._trouble.hit(understood(error))
            await self._sleep(delay)

    async def _turn(self) -> None:
        if not self._version:
            await self._list()
        began = self._clock()
        async for change in self._kube.watch(self._kind, self._selector, self._version):
            self._answers()
            self._take(change.type, change.object)
            self._version = change.version
        self._answers()
        if self._clock() - began < _QUICK:
            await self._sleep(self._jitter() * _QUICK)

    def _answers(self) -> None:
        self._trouble.over()
        self._forgotten = 0

    async def _list(self) -> None:
        listing = await self._kube.list(self._kind, self._selector)
        items = {_name(item): item for item in listing.items}
        differs = {name: _version(item) for name, item in items.items()} != {
            name: _version(item) for name, item in self._items.items()
        }
        self._items, self._version = items, listing.version
        self._trouble.over()
        log.info("listed", kind=self._kind.plural, count=len(items))
        first = not self._listed.is_set()
        self._listed.set()
        if differs or first:
            self._changed()

    def _take(self, type_: str, thing: Object) -> None:
        if type_ == "BOOKMARK":
            return
        if type_ == "DELETED":
            self._items.pop(_name(thing), None)
        else:
            self._items[_name(thing)] = thing
        self._changed()


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _version(thing: Object) -> str:
    return str(thing["metadata"]["resourceVersion"])
