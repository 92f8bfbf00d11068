"""The cluster's state in a ConfigMap, for ``kubectl get configmap NAME-status -o yaml``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubePort, KubeRefused, Object
from orchestrator.controller.kube.trouble import Trouble
from orchestrator.core.errors import SegueError
from orchestrator.core.notice import notice
from orchestrator.core.scene import Scene

_INTERVAL = 5.0  # seconds between two writes
_LOOK = 30.0  # seconds until it is looked whether it may be written by now
_TRIES = 3  # in a row against others who write it


class Poster:
    """``saw`` takes each new scene; ``run`` writes the newest now and then, as long as ``may`` says so."""

    def __init__(
        self,
        kube: KubePort,
        owner: Owner,
        may: Callable[[], bool],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kube = kube
        self._owner = owner
        self._may = may
        self._sleep = sleep
        self.name = f"{owner.name}-status"
        self._scene: Scene | None = None
        self._address = ""
        self._object: Object | None = None
        self._data: dict[str, str] = {}
        self._dirty = asyncio.Event()
        self._trouble = Trouble("status")

    def saw(self, scene: Scene, address: str) -> None:
        """``address``: where the controller listens."""
        if (scene, address) != (self._scene, self._address):
            self._scene, self._address = scene, address
            self._dirty.set()

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            await self._dirty.wait()
            if not self._may():
                await self._sleep(min(_LOOK, _INTERVAL))
                continue
            self._dirty.clear()
            try:
                await self.write()
                self._trouble.over()
                await self._sleep(_INTERVAL)
            except SegueError as error:
                self._dirty.set()
                await self._sleep(max(_INTERVAL, self._trouble.hit(error)))

    async def write(self, *, ended: bool = False) -> None:
        """What was seen last, or that it has ended. Raises KubeConflict where others write it on and on."""
        for left in reversed(range(_TRIES)):
            if self._object is None:
                self._object = await self._kube.get(Kind.CONFIGMAPS, self.name)
                self._data = dict((self._object or {}).get("data") or {})
            data = self._said(ended=ended)
            if self._object is not None and data == self._data:
                return
            try:
                await self._put(data)
                return
            except (KubeConflict, KubeRefused) as error:
                self._object = None  # changed, made or removed by somebody else: look again
                if not left:
                    raise error

    def _said(self, *, ended: bool) -> dict[str, str]:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if ended or self._scene is None:
            return {"state": f"ended, since {now}"}
        return notice(self._scene, self._data, now, controller=self._address)

    async def _put(self, data: dict[str, str]) -> None:
        kind = Kind.CONFIGMAPS
        body: dict[str, Any] = {"apiVersion": kind.api_version, "kind": kind.kind, "data": data}
        if self._object is None:
            self._object = await self._kube.create(kind, body | {"metadata": await self._owner.meta(self.name)})
        else:
            self._object = await self._kube.replace(kind, body | {"metadata": self._object["metadata"]})
        self._data = data
