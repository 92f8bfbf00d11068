"""A Lease by which one controller of a RayCluster acts at a time; ``core/election`` decides."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.controller.kube.owner import Owner
from orchestrator.controller.kube.ports import Kind, KubeConflict, KubeForbidden, KubePort, KubeUnreachable, Object
from orchestrator.controller.kube.trouble import Trouble, understood
from orchestrator.core.election import Election, Record, Standing, Terms, Write
from orchestrator.core.errors import NotReady, StaleEpoch
from orchestrator.telemetry import logs

log = logs.events("controller.kube")

_ANSWER = 3.0  # seconds for one request: several have to fit into the time for which a holder believes
_FIRST_ANSWER = 30.0  # seconds to wait for one at all; then it acts without
_TURN = 45.0  # seconds to wait for another's lease: enough to see that it is dead
_FORBIDDEN = 60.0  # seconds between two looks where it may not look


def asleep_too() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """``win`` first, then ``keep``, which lasts; ``release`` at the end.

    ``identity`` is the same for a controller and the one that Ray restarts in its place.
    """

    def __init__(
        self,
        kube: KubePort,
        owner: Owner,
        identity: str,
        *,
        terms: Terms | None = None,
        clock: Callable[[], float] = asleep_too,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._kube = kube
        self._owner = owner
        self.name = f"{owner.name}-controller"
        self._election = Election(identity, terms)
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._object: Object = {}
        self._told: Standing | None = None
        self._trouble = Trouble(f"lease_{self.name}", jitter)

    @property
    def standing(self) -> Standing:
        return self._election.standing(self._clock())

    @property
    def holds(self) -> bool:
        """Whether anything may be written into Kubernetes now."""
        return self.standing is Standing.HOLDING

    async def win(self) -> None:
        """Returns once it is ours, or nobody can tell whose it is: then a controller acts in Ray all the same.

        Raises NotReady where another controller has it and goes on renewing it.
        """
        began = self._clock()
        while True:
            await self._round()
            if self.holds:
                return
            waited = self._clock() - began
            silent = self._trouble.error is not None and not self._election.rival_lives
            if silent or self._election.holder in ("", self._election.identity):
                if waited >= _FIRST_ANSWER or isinstance(self._trouble.error, KubeForbidden):
                    log.warning("acts_without_lease", lease=self.name, waited=waited)
                    return
            elif waited >= _TURN:
                what = f"another controller acts: {self._election.holder} holds the lease"
                hint = "it is taken over as soon as that one ends or stops renewing it"
                raise NotReady(what, where=f"lease {self.name}", hint=hint)
            await self._pause()

    async def keep(self) -> None:
        """Renews it, or goes on trying to get it. Raises StaleEpoch once another controller acts in our place."""
        while True:
            await self._pause()
            await self._round()
            deposed = self.standing is Standing.DEPOSED
            if deposed or (self.standing is Standing.WAITING and self._election.rival_lives):
                what = f"{self._election.holder} holds the lease now, and acts"
                raise StaleEpoch(what, where=f"lease {self.name}", hint="this controller ends by itself")

    async def release(self) -> None:
        """So that another controller need not wait; nothing is tried twice."""
        wish = self._election.resign()
        if wish is None:
            return
        try:
            async with asyncio.timeout(_ANSWER):
                await self._put(wish)
        except Exception as error:
            log.warning("lease_not_released", error=error, lease=self.name)

    async def _pause(self) -> None:
        # What is held is lost by waiting for long: a right that is missing for a moment must not cost it.
        patient = isinstance(self._trouble.error, KubeForbidden) and self.standing is Standing.ASKING
        seconds = _FORBIDDEN if patient else self._election.terms.retry
        await self._sleep(seconds * (1 + 0.2 * self._jitter()))

    async def _round(self) -> None:
        """One look or write, as the election wants it; whatever comes of it."""
        try:
            if self._election.must_look:
                async with asyncio.timeout(_ANSWER):
                    found = await self._kube.get(Kind.LEASES, self.name)
                self._object = found or {}
                self._election.saw(_record(found) if found is not None else None, self._clock())
            wish = self._election.wish(self._clock())
            if wish is not None:
                sent = self._clock()
                async with asyncio.timeout(_ANSWER):
                    written = await self._put(wish)
                self._election.wrote(_record(written), sent)
            self._trouble.over()
        except KubeConflict:
            self._trouble.over()  # another was quicker
        except TimeoutError:
            self._trouble.hit(KubeUnreachable(f"the API server gave no answer in {_ANSWER:g} s"))
        except Exception as error:  # whatever it is, the controller goes on in Ray
            self._trouble.hit(understood(error))
        self._tell()

    async def _put(self, wish: Write) -> Object:
        body = await self._body(wish)
        if wish.version:
            self._object = await self._kube.replace(Kind.LEASES, body)
        else:
            self._object = await self._kube.create(Kind.LEASES, body)
        return self._object

    async def _body(self, wish: Write) -> Object:
        spec: dict[str, Any] = dict(self._object.get("spec") or {})
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec |= {
            "holderIdentity": wish.holder,
            "leaseDurationSeconds": int(self._election.terms.duration),
            "renewTime": now,
            "leaseTransitions": wish.transitions,
        }
        if wish.taken:
            spec["acquireTime"] = now
        meta = dict(self._object["metadata"]) if self._object else await self._owner.meta(self.name)
        if wish.version:
            meta["resourceVersion"] = wish.version
        return {"apiVersion": Kind.LEASES.api_version, "kind": Kind.LEASES.kind, "metadata": meta, "spec": spec}

    def _tell(self) -> None:
        standing = self.standing
        if standing is not self._told:
            log.info("lease", lease=self.name, standing=standing.value, holder=self._election.holder)
            self._told = standing


def _record(lease: Object) -> Record:
    spec = lease.get("spec") or {}
    return Record(
        spec.get("holderIdentity") or "",
        float(spec.get("leaseDurationSeconds") or 0),
        lease["metadata"]["resourceVersion"],
        spec.get("leaseTransitions") or 0,
    )
