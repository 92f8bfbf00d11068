"""The models that a gateway serves: a front end each, and how they become those of another specification."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable

from orchestrator.config import digest
from orchestrator.core import messages as m
from orchestrator.core.errors import InvalidRequest, ModelNotFound, NotReady, SegueError
from orchestrator.core.spec import ClusterSpec, ModelSpec, Role
from orchestrator.core.types import WorkerInfo
from orchestrator.gateway import frontend
from orchestrator.gateway.driver import Driver
from orchestrator.gateway.frontend import Front
from orchestrator.models import prepare
from orchestrator.telemetry import logs

FRONT_SECONDS = 1.0
REFIT_SECONDS = 30.0  # at least, between two front ends of a model: what was replaced stays for a while
RETIRED_SECONDS = 60.0  # what a request may take from finding its front end to being on that one's books

log = logs.events("gateway.served")


class Served:
    """``changed`` is called when what it serves may be another. All of it runs on the gateway's event loop."""

    def __init__(self, spec: ClusterSpec, driver: Driver, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.serves = digest(spec)
        self.refuses = ""
        self.refusal = ""
        self._driver = driver
        self._changed = changed
        self._fronts: dict[str, Front] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._broken: SegueError | None = None
        self._told: asyncio.Queue[ClusterSpec] = asyncio.Queue()
        self._coming: set[str] = set()  # models that were added, or get other pools, and are not all there yet
        self._refitted: dict[str, float] = {}  # when each model last was
        self._retired: list[tuple[Front, float]] = []  # with when they were last seen busy

    # ---- as it is

    def front(self, model: str) -> Front:
        """See ``ports.GatewayView``."""
        names = [spec.name for spec in self.spec.models]
        if not model and len(names) > 1:
            raise InvalidRequest("the request names no model", hint=f"models here: {', '.join(names)}")
        name = model or names[0]
        if name not in names:
            raise ModelNotFound(f"no model '{name}' is served here", hint=f"models here: {', '.join(names)}")
        front = self._fronts.get(name)
        if front is None or front.app is None:
            raise NotReady(f"{name} is starting", retry_after=5.0)
        return front

    def fronts(self) -> list[Front]:
        return list(self._fronts.values())

    def missing(self, model: ModelSpec, roles: Iterable[Role]) -> list[str]:
        """What a model lacks to be served by workers of these roles, in words."""
        takes = self._driver.takes
        missing = [f"{model.name}/{role} has no ready worker" for role in roles if not takes(model.name, role)]
        front = self._fronts.get(model.name)
        if not missing and (front is None or front.app is None):
            missing.append(f"{model.name}'s API is being built")
        return missing

    def not_ready(self) -> list[str]:
        """What its models lack; of those that are only coming nothing is expected."""
        self._coming -= {model.name for model in self.spec.models if not self.missing(model, model.pools)}
        models = [model for model in self.spec.models if model.name not in self._coming]
        return [line for model in models for line in self.missing(model, model.pools)]

    # ---- as it begins

    async def build(self, model: ModelSpec) -> None:
        """Loads one model's front end; it opens as soon as a worker of it is known."""
        self._fronts[model.name] = await self._built(model, self.spec)
        for worker in self._driver.workers.values():
            self.worker_up(worker)

    def worker_up(self, worker: WorkerInfo) -> None:
        """A session with it is open."""
        front = self._fronts.get(worker.model)
        if front is None or front.app is not None or worker.role is Role.PREFILL or worker.facts is None:
            return
        if worker.model not in self._opening:
            task = asyncio.create_task(front.open(worker.facts.tasks, worker.facts.max_model_len))
            self._opening[worker.model] = task
            task.add_done_callback(lambda done: self._opened(worker.model, done))

    def _opened(self, model: str, task: asyncio.Task[None]) -> None:
        del self._opening[model]
        if not task.cancelled() and (error := task.exception()):
            log.failure("API could not be built", error, model=model)
            self._broken = SegueError(
                f"its API could not be built: {error}", where=model, hint="see the model's `frontend`"
            )
        self._changed()

    async def _built(self, model: ModelSpec, spec: ClusterSpec) -> Front:
        path = await asyncio.to_thread(prepare, model.source)
        isolate = spec.gateway.admission.isolate_caches
        return frontend.build(model, path, self._driver, lambda: self._decodes(model.name), isolate_caches=isolate)

    def _decodes(self, model: str) -> bool:
        # Where a model gets other pools, those that go serve until those that come can.
        return self._driver.takes(model, Role.DECODE) or self._driver.takes(model, Role.SERVE)

    # ---- as it changes

    def tell(self, spec: ClusterSpec) -> None:
        """Another specification, which is taken as soon as what it needs is built."""
        self._told.put_nowait(spec)

    async def run(self) -> None:
        """For ever: takes what it is told, and ends the gateway, which is then replaced, if vLLM's front end of a model
        has broken for good."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="specifications")
            group.create_task(self._watch(), name="front ends")

    async def _follow(self) -> None:
        while True:
            spec = await self._told.get()
            while not self._told.empty():
                spec = self._told.get_nowait()
            if digest(spec) == self.serves:
                self.refuses = ""
                continue
            try:
                await self._take(spec)
            except Exception as error:  # whatever it is, the old one is still served, and the controller must hear it
                log.failure("specification_refused", error)
                self.refuses, self.refusal = digest(spec), str(error) or type(error).__name__
            self._changed()

    async def _take(self, spec: ClusterSpec) -> None:
        """Builds what is new or another, and then has all of it at once."""
        before = {model.name: model for model in self.spec.models}
        new = {model.name: model for model in spec.models}
        built = await self._all_of(
            [
                model
                for name, model in new.items()
                if name not in before or frontend.made_of(before[name]) != frontend.made_of(model)
            ],
            spec,
        )
        for model in spec.models:
            event = _routed(model)
            if model.name not in before or event != _routed(before[model.name]):
                self._driver.routed(event)
        gone = [front for name, front in self._fronts.items() if name in built or name not in new]
        self._retired += [(front, asyncio.get_running_loop().time()) for front in gone]
        self._fronts = {name: built.get(name) or self._fronts[name] for name in new}
        self._coming = {name for name in new if name not in before or set(before[name].pools) != set(new[name].pools)}
        self.spec, self.serves, self.refuses = spec, digest(spec), ""
        for worker in self._driver.workers.values():
            self.worker_up(worker)
        log.info("specification_taken", models=",".join(new), built=",".join(built))

    async def _all_of(self, models: Iterable[ModelSpec], spec: ClusterSpec) -> dict[str, Front]:
        """A front end for each, or, where one can't be had, none."""
        built: dict[str, Front] = {}
        try:
            for model in models:
                built[model.name] = await self._replacing(model, spec)
        except BaseException:
            for front in built.values():
                front.close()
            raise
        return built

    async def _replacing(self, model: ModelSpec, spec: ClusterSpec) -> Front:
        """A front end that can serve at once where the model has workers."""
        front = await self._built(model, spec)
        limit = self._limit(model.name)
        try:
            if limit is not None:
                await front.open(*limit)
        except BaseException:
            front.close()
            raise
        return front

    def _limit(self, model: str) -> tuple[tuple[str, ...], int] | None:
        """The tasks, and the longest context, of the workers that a model has; None where it has none."""
        facts = [
            worker.facts
            for worker in self._driver.workers.values()
            if worker.model == model and worker.role is not Role.PREFILL and worker.facts is not None
        ]
        if not facts:
            return None
        ((tasks, _),) = Counter(each.tasks for each in facts).most_common(1)  # one that is wrong decides nothing
        return tasks, max(each.max_model_len for each in facts)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(FRONT_SECONDS)
            if self._broken is not None:
                raise self._broken
            for front in self._fronts.values():
                if front.llm.errored:
                    raise SegueError(
                        "vLLM's front end broke", where=front.name, hint="this gateway's log has its last words"
                    )
            await self._refit()
            self._retire(asyncio.get_running_loop().time())

    async def _refit(self) -> None:
        """A front end that was opened for workers of another context, or for other tasks, is opened anew for those that
        there are."""
        for model in self.spec.models:
            front, limit = self._fronts.get(model.name), self._limit(model.name)
            if front is None or front.app is None or limit is None or front.fits(*limit):
                continue
            now = asyncio.get_running_loop().time()
            if now < self._refitted.get(model.name, -math.inf) + REFIT_SECONDS:
                continue
            self._refitted[model.name] = now
            fitting = await self._replacing(model, self.spec)
            if self._fronts.get(model.name) is not front:
                fitting.close()  # another took the place meanwhile
                continue
            self._retired.append((front, asyncio.get_running_loop().time()))
            self._fronts[model.name] = fitting
            log.info("front_end_refitted", model=model.name, max_model_len=fitting.max_model_len)

    def _retire(self, now: float) -> None:
        kept = []
        for front, busy_at in self._retired:
            if front.busy:
                kept.append((front, now))
            elif now - busy_at < RETIRED_SECONDS:
                kept.append((front, busy_at))
            else:
                front.close()
        self._retired = kept

    def close(self) -> None:
        for front in (*self._fronts.values(), *(front for front, _ in self._retired)):
            front.close()


def _routed(model: ModelSpec) -> m.ModelRouted:
    parameters = tuple(m.Parameter(name, float(value)) for name, value in model.routing.parameters.items())
    return m.ModelRouted(model.name, model.routing.policy, parameters, model.routing.prefill, model.target_seconds)
