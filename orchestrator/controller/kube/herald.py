"""Kubernetes Events at the RayCluster, of what ``core/announcing`` has to say."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.controller.kube.owner import COMPONENT, Owner
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubePort, KubeRefused
from orchestrator.controller.kube.trouble import Trouble
from orchestrator.core.announcing import Announcement, Announcer
from orchestrator.core.errors import SegueError
from orchestrator.core.scene import Scene
from orchestrator.telemetry import logs

log = logs.events("controller.kube")
_TICK = 5.0  # seconds between two looks for what may be told by now
_KEPT = 200  # events that wait for the API server; the oldest go first


class Herald:
    """``saw`` takes each new scene; ``run`` writes, as long as ``may`` says so, and keeps what it can't write yet."""

    def __init__(
        self, kube: KubePort, owner: Owner, may: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kube = kube
        self._owner = owner
        self._may = may
        self._clock = clock
        self._announcer = Announcer()
        self._scene: Scene | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._awake = asyncio.Event()
        self._trouble = Trouble("events")

    def saw(self, scene: Scene) -> None:
        """Costs nothing but thought."""
        self._scene = scene
        for each in self._announcer.step(scene, self._clock()):
            log.info("announce", reason=each.reason)
            if len(self._waiting) == _KEPT:
                log.warning("event_dropped", reason=self._waiting.popleft()["reason"])
            self._waiting.append(self._event(each))
            self._awake.set()

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(_TICK):
                    await self._awake.wait()
            except TimeoutError:
                if self._scene is not None:
                    self.saw(self._scene)
            self._awake.clear()
            await asyncio.sleep(await self.write())

    async def write(self) -> float:
        """All that waits; seconds to leave it alone where it can't be written."""
        while self._waiting and self._may():
            first = self._waiting[0]
            try:
                event = dict(first)
                uid = await self._owner.uid()
                event["regarding"] = {**event["regarding"], **({"uid": uid} if uid else {})}
                await self._kube.create(Kind.EVENTS, event)
            except KubeConflict:
                pass  # it is there: the answer of an earlier try was lost
            except KubeRefused as error:
                log.failure("event_refused", error, reason=first["reason"])
            except SegueError as error:
                return self._trouble.hit(error)
            self._trouble.over()
            if self._waiting and self._waiting[0] is first:  # or it was dropped meanwhile
                self._waiting.popleft()
        return 0.0

    def _event(self, said: Announcement) -> dict[str, Any]:
        """Named once, so that to write it again is not to write it twice."""
        namespace, kind = self._kube.namespace, Kind.RAYCLUSTERS
        regarding = {"apiVersion": kind.api_version, "kind": kind.kind, "name": self._owner.name}
        return {
            "apiVersion": Kind.EVENTS.api_version,
            "kind": Kind.EVENTS.kind,
            "metadata": {"name": f"{self._owner.name}.{secrets.token_hex(8)}", "namespace": namespace},
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": "Warning" if said.warning else "Normal",
            "reason": said.reason,
            "action": said.action,
            "note": said.note,
            "regarding": {**regarding, "namespace": namespace},
            "reportingController": COMPONENT,
            "reportingInstance": socket.gethostname()[:128],
        }
