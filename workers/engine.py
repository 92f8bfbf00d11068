"""vLLM's engine core behind the worker's port: the one place (with ``wire``) that knows vLLM's API."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from vllm.config import KVEventsConfig, KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.torch_utils import get_kv_cache_torch_dtype
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError

from orchestrator.core.errors import SegueError, WorkerLost, WorkerStartFailed
from orchestrator.core.hang import Stillness
from orchestrator.core.mirror import CacheEvent
from orchestrator.core.spec import Device, Role
from orchestrator.core.types import EngineFacts, Load, WorkerAssignment
from orchestrator.telemetry import output
from orchestrator.telemetry.logs import events
from workers import inventory, kv_events, plugin, restoring, wire
from workers.executors import executor_arguments, executor_class
from workers.nudge import Nudger
from workers.ports import EngineStep, Progress, Transfers
from workers.transfer import connector_settings, kv_format, transfers_of

_TASKS_SECONDS = 60.0
_LOOK_SECONDS = 1.0  # at its processes
_STOPPED_LOOKS = 5  # after which one that is stopped counts as lost; looks, as this process may have been stopped too
_SHUTDOWN_SECONDS = 3.0  # then it is killed: it has been drained, and nothing of it is worth a longer wait
_EVENT_DELAY = 0.01  # how long KV events wait for a step to travel with

_log = events("worker.engine")


class VllmEngine:
    """Implements ``workers.ports.Engine``. ``model`` is a folder or a Hugging Face id."""

    def __init__(self, assignment: WorkerAssignment, model: str, run_folder: Path) -> None:
        self._assignment = assignment
        self._model = model
        self._run_folder = run_folder
        self._client: AsyncMPClient | None = None
        self._facts: EngineFacts | None = None
        self._feed: kv_events.KvEventFeed | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._load = Load()
        self._pending_events: list[CacheEvent] = []
        self._flush: asyncio.TimerHandle | None = None
        self._steps: asyncio.Queue[EngineStep | SegueError | None] = asyncio.Queue()
        self._closing = False
        self._memory: set[Path] = set()  # shared between its processes, of which the killed remove none
        self._nudger = Nudger(self._look)
        self._looks = count()
        self._asked: set[str] = set()  # requests that have not ended
        self._spoken = 0  # how often the engine said something
        self._said_before = output.written()  # by others than this start

    @property
    def facts(self) -> EngineFacts:
        if self._facts is None:
            raise WorkerLost("the engine is not up", where=self._assignment.worker_id)
        return self._facts

    @property
    def vocabulary(self) -> int:
        return self._live_client().vllm_config.model_config.get_vocab_size()

    @property
    def pid(self) -> int:
        processes = self._processes()
        return processes[0].pid or 0 if processes else 0

    async def start(self, progress: Progress) -> None:
        config = await self._guard(asyncio.to_thread(self._configure))
        if config.kv_events_config is not None:
            self._feed = kv_events.KvEventFeed(config.kv_events_config.endpoint, self._take_events)
        progress("loading weights and starting the engine")
        self._client = await self._guard(asyncio.to_thread(self._launch, config))
        tasks = await self._guard(asyncio.wait_for(self._client.get_supported_tasks_async(), _TASKS_SECONDS))
        config = self._client.vllm_config
        facts = facts_of(config, tuple(tasks), self._assignment.device)
        self._facts = replace(facts, kv_format=kv_format(config, facts, self._assignment.source))
        self._load = Load(kv_blocks_total=self._facts.kv_blocks_total)
        if self._assignment.device is Device.CPU:
            # NIXL pins the process that moves KV, which on a CPU also computes, to one core.
            for pid in self._family():
                inventory.widen_affinity(pid)
        family = self._family()
        self._memory = inventory.shared_memory(family)
        if self._feed is not None:
            await self._feed.start()
        self._reader = asyncio.create_task(self._read(self._client))
        batch = config.scheduler_config.max_num_batched_tokens
        still = Stillness(self._facts, batch, self._assignment.hang_seconds)
        self._watcher = asyncio.create_task(self._watch(family, still))

    async def submit(self, request: wire.Request) -> None:
        self._asked.add(request.request_id)
        await self._send(request)

    async def _send(self, request: wire.Request) -> None:
        wire.tell_once(request)
        with _lost(self._assignment.worker_id):
            await self._live_client().add_request_async(request)

    async def abort(self, wire_ids: Sequence[str]) -> None:
        self._asked.difference_update(wire_ids)
        with _lost(self._assignment.worker_id):
            await self._live_client().abort_requests_async(list(wire_ids))
        self._see_through()

    async def release(self, wire_id: str, transfer: Mapping[str, Any]) -> None:
        await self._send(wire.release_request(wire_id, transfer, time.time()))
        self._see_through()

    def _see_through(self) -> None:
        if self._assignment.kv_transfer and self._assignment.role is Role.DECODE:
            self._nudger.ask()

    async def _look(self) -> None:
        with suppress(WorkerLost):  # an engine that is gone has nothing to see through; its reader tells of it
            await self._send(wire.release_request(f"look~{next(self._looks)}", None, time.time()))

    async def steps(self) -> AsyncIterator[EngineStep]:
        while (step := await self._steps.get()) is not None:
            if isinstance(step, SegueError):
                raise step
            yield step

    async def shutdown(self) -> None:
        self._closing = True
        await self._nudger.stop()
        tasks = [task for task in (self._reader, self._watcher) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._feed is not None:
            await self._feed.stop()
        memory = self._memory | inventory.shared_memory(self._family())
        if self._client is not None:
            await asyncio.to_thread(self._client.shutdown, _SHUTDOWN_SECONDS)
        for process in self._processes():
            with suppress(ValueError):  # closed by the client: it is gone
                process.kill()
        inventory.remove_files(memory)
        self._steps.put_nowait(None)

    def _configure(self) -> VllmConfig:
        arguments = {**executor_arguments(self._assignment), **self._assignment.engine}
        chosen = arguments.pop("kv_transfer_config", None) or {}
        if self._assignment.kv_transfer:
            settings = connector_settings(self._assignment.device, chosen)
            arguments["kv_transfer_config"] = KVTransferConfig(**settings)
        if arguments.get("enable_prefix_caching") is not False:
            arguments["kv_events_config"] = KVEventsConfig(
                enable_kv_cache_events=True,
                publisher="zmq",
                endpoint=kv_events.endpoint(self._run_folder),
                topic=kv_events.TOPIC,
            )
        return AsyncEngineArgs(model=self._model, **arguments).create_engine_config()

    def _launch(self, config: VllmConfig) -> AsyncMPClient:
        stopped = WorkerStartFailed("it was stopped while it started", where=self._assignment.worker_id)
        if self._closing:
            raise stopped
        executor = executor_class(config, self._assignment.device)
        with _watched_from_the_first_moment():
            client: AsyncMPClient = EngineCoreClient.make_async_mp_client(config, executor, log_stats=True)
        if self._closing:  # nobody waits for this thread any more
            client.shutdown(_SHUTDOWN_SECONDS)
            raise stopped
        return client

    async def _guard(self, work: Any) -> Any:
        try:
            return await work
        except SegueError:
            raise
        except Exception as error:
            # Configuration and start-up only: no request, and so no prompt, can be in the message.
            said = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
            cause = output.own_root_cause(self._said_before) if output.points_at_another(said) else ""
            what = f"vLLM did not start: {cause or said}"
            hint = f"see {self._assignment.worker_id}'s log for the engine's own words"
            raise WorkerStartFailed(what, where=self._assignment.worker_id, hint=hint) from error

    def _live_client(self) -> AsyncMPClient:
        if self._client is None or self._closing:
            raise WorkerLost("the engine is not up", where=self._assignment.worker_id)
        return self._client

    def _processes(self) -> list[Any]:
        """The engine core's processes, also while they start."""
        if self._client is not None:
            return list(getattr(self._client.resources.engine_manager, "processes", ()))
        return [child for child in multiprocessing.active_children() if child.name.startswith("EngineCore")]

    def _family(self) -> list[int]:
        return [self.pid, *inventory.descendants(self.pid)] if self.pid else []

    async def _read(self, client: AsyncMPClient) -> None:
        try:
            while True:
                self._take(await client.get_output_async())
        except Exception as error:
            if not self._closing:
                _log.error("engine_lost", error)
                inventory.remove_files(self._memory)
            what = f"the engine died: {type(error).__name__}"
            self._steps.put_nowait(WorkerLost(what, where=self._assignment.worker_id))

    async def _watch(self, family: Sequence[int], still: Stillness) -> None:
        """Nobody hears of a process that is stopped, or of a device that answers no more: sockets stay open, and
        requests would wait for ever."""
        looks, what = 0, ""
        while not what:
            await asyncio.sleep(_LOOK_SECONDS)
            stopped = inventory.stopped(family)
            looks = looks + 1 if stopped else 0
            if looks >= _STOPPED_LOOKS:
                what = f"a process of the engine is stopped (SIGSTOP): {stopped[0]}"
            elif still.looked(_LOOK_SECONDS, busy=bool(self._asked), steps=self._spoken):
                what = f"the engine hangs: {len(self._asked)} requests, and no step for {still.seconds:.0f} s"
        self._steps.put_nowait(WorkerLost(what, where=self._assignment.worker_id))

    def _take(self, outputs: EngineCoreOutputs) -> None:
        transfers, load = Transfers(), self._load
        self._spoken += 1
        self._asked.difference_update(each.request_id for each in outputs.outputs if each.finish_reason is not None)
        stats = outputs.scheduler_stats
        if stats is not None:
            total = self.facts.kv_blocks_total
            waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
            load = Load(stats.num_running_reqs, waiting, round(stats.kv_cache_usage * total), total)
            transfers = transfers_of(stats.kv_connector_stats)
        # A prefill engine whose blocks wait to be collected steps a thousand times a second with nothing to say.
        if outputs.outputs or transfers or load != self._load:
            self._load = load
            self._emit(EngineStep(load, outputs.outputs, outputs.timestamp, transfers))

    def _emit(self, step: EngineStep) -> None:
        found, self._pending_events = self._pending_events, []
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._steps.put_nowait(replace(step, kv_events=found))

    def _take_events(self, batch: list[CacheEvent]) -> None:
        self._pending_events += batch
        if self._flush is None and self._pending_events:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(_EVENT_DELAY, lambda: self._emit(EngineStep(self._load)))


@contextmanager
def _watched_from_the_first_moment() -> Iterator[None]:
    original = EngineCoreProc.__dict__["run_engine_core"]
    EngineCoreProc.run_engine_core = staticmethod(plugin.run_engine_core)
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = original


@contextmanager
def _lost(worker_id: str) -> Iterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise WorkerLost("the engine died", where=worker_id) from error


def facts_of(config: VllmConfig, tasks: tuple[str, ...], device: Device) -> EngineFacts:
    """What vLLM settled on. One of its KV blocks is a placeholder that no request gets."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    dtype = get_kv_cache_torch_dtype(cache.cache_dtype, model.dtype)
    planes = 1 if model.use_mla else 2  # K and V; multi-head latent attention keeps one for both
    heads = model.get_num_kv_heads(parallel) * parallel.tensor_parallel_size
    token_bytes = planes * model.get_total_num_hidden_layers() * heads * model.get_head_size() * dtype.itemsize
    return EngineFacts(
        block_size=cache.block_size,
        kv_blocks_total=max(0, (cache.num_gpu_blocks or 0) - 1),
        kv_block_bytes=token_bytes * cache.block_size,
        max_model_len=model.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        tasks=tasks,
        kv_events=config.kv_events_config is not None and bool(cache.enable_prefix_caching),
        weight_bytes=inventory.weight_bytes(model.model),
        device=device,
        restores=restoring.is_whole(config),
    )
