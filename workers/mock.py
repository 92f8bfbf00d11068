"""An engine without weights: honest timings, deterministic tokens, real accounting of blocks and a real hand-over.

One step takes ``step_seconds`` plus the time that its uncached prompt tokens take at ``prefill_tokens_per_second``; a
request that collects a prefill takes the time of its bytes at ``transfer_bytes_per_second`` first.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from collections.abc import Sequence as Seq
from typing import Any
from uuid import uuid4

from orchestrator.core.errors import SegueError, WorkerLost
from orchestrator.core.types import EngineFacts, Load
from orchestrator.telemetry import logs
from workers import mock_logprobs
from workers.inventory import LOOPBACK
from workers.mock_blocks import BlockPool, Holding
from workers.mock_sequence import Sequence, Vocabulary
from workers.mock_settings import MockSettings
from workers.mock_transfer import TransferServer, dial, offer
from workers.ports import Clock, EngineStep, Progress, SystemClock, Transfers
from workers.wire import Finish, Output, Request

_log = logs.events("worker.mock")

LATE_SECONDS = 0.005  # by which a wake-up may be late and the next step still end on time


class MockEngine:
    """Implements ``workers.ports.Engine``."""

    def __init__(self, engine: Mapping[str, Any], clock: Clock | None = None, host: str = LOOPBACK) -> None:
        self.settings = MockSettings.of(engine)
        self._clock = clock or SystemClock()
        self._host = host
        self._engine_id = str(uuid4())
        self._port = 0
        self._vocabulary = Vocabulary(self.settings.first_token, self.settings.vocabulary, self.settings.eos_one_in)
        self._pool = BlockPool(self.settings.kv_blocks, self.settings.block_size, self.settings.enable_prefix_caching)
        self._waiting: deque[Sequence] = deque()
        self._collecting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._pinned: dict[str, tuple[Holding, asyncio.Task[None]]] = {}
        self._transfers = Transfers()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._steps: asyncio.Queue[EngineStep | SegueError | None] = asyncio.Queue()
        self._server = TransferServer(self)
        self._lost: WorkerLost | None = None

    @property
    def facts(self) -> EngineFacts:
        chosen = self.settings
        return EngineFacts(
            block_size=chosen.block_size,
            kv_blocks_total=chosen.kv_blocks,
            kv_block_bytes=chosen.kv_block_bytes,
            max_model_len=chosen.max_model_len,
            max_num_seqs=chosen.max_num_seqs,
            kv_events=chosen.enable_prefix_caching,
            restores=chosen.restores,
            kv_format=f"mock {chosen.block_size} {chosen.kv_block_bytes}",
        )

    @property
    def vocabulary(self) -> int:
        return 1 << 31  # it looks none up

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def load(self) -> Load:
        return Load(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._collecting),
            kv_blocks_used=self._pool.used,
            kv_blocks_total=self._pool.total,
        )

    async def start(self, progress: Progress) -> None:
        progress("starting the mock engine")
        self._port = await self._server.start(self._host)
        await self._clock.sleep(self.settings.start_seconds)
        self._spawn(self._run())

    async def submit(self, request: Request) -> None:
        self._check_alive()
        self._waiting.append(Sequence.of(request, self._vocabulary, self._clock.monotonic()))
        self._wake.set()

    async def abort(self, wire_ids: Seq[str]) -> None:
        self._check_alive()
        for wire_id in wire_ids:
            sequence = self._take(wire_id)
            if sequence is None:
                continue
            if sequence.collecting is not None:
                sequence.collecting.cancel()
            self._pool.release(sequence.holding)
            if sequence.transfer.get("do_remote_prefill") and not sequence.external_cached:
                self._spawn(self._free_remote(sequence.transfer))
        self._report()
        self._wake.set()

    async def release(self, wire_id: str, transfer: Mapping[str, Any]) -> None:
        self._check_alive()
        self._spawn(self._free_remote(transfer))

    async def steps(self) -> AsyncIterator[EngineStep]:
        while (step := await self._steps.get()) is not None:
            if isinstance(step, SegueError):
                raise step
            yield step

    async def shutdown(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
        self._steps.put_nowait(None)

    def fail(self, why: str = "the engine died") -> None:
        """Dies as an engine core that was killed does."""
        self._lost = WorkerLost(why, where="mock engine")
        for task in self._tasks:
            task.cancel()
        self._steps.put_nowait(self._lost)

    def pinned_blocks(self, request_id: str) -> int | None:
        pinned = self._pinned.get(request_id)
        return pinned[0].blocks if pinned else None

    def unpin(self, request_id: str) -> None:
        if request_id in self._pinned:
            holding, lease = self._pinned.pop(request_id)
            lease.cancel()
            self._pool.release(holding)
            self._report()
            self._wake.set()

    async def _run(self) -> None:
        ends = self._clock.monotonic()
        while True:
            self._admit()
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
                ends = self._clock.monotonic()
                continue
            # A decoding sequence computes one token a step, which is what step_seconds stands for.
            uncached = sum(len(one.tokens) - one.computed - 1 for one in self._running.values())
            duration = self.settings.step_seconds + max(0, uncached) / self.settings.prefill_tokens_per_second
            now = self._clock.monotonic()
            ends = max(now - LATE_SECONDS, ends) + duration  # so that late wake-ups don't add up
            await self._clock.sleep(ends - now)
            self._report(self._advance())

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._collecting) < self.settings.max_num_seqs:
            sequence = self._waiting[0]
            if not self._place(sequence):
                break
            self._waiting.popleft()
            if sequence.transfer.get("do_remote_prefill") and not sequence.reported:
                self._collecting[sequence.wire_id] = sequence
                sequence.collecting = self._spawn(self._collect(sequence))
            else:
                self._schedule(sequence)

    def _place(self, sequence: Sequence) -> bool:
        """Blocks for a sequence's tokens, cached ones first; False if there is no room."""
        # The last token is always computed: it makes the next one.
        cached = self._pool.cached(sequence.tokens[:-1], sequence.kinship)
        needed = -(-len(sequence.tokens) // self.settings.block_size) - len(cached)
        holding = self._pool.hold(cached, needed, sequence.kinship)
        if holding is None:
            return False
        sequence.holding = holding
        sequence.computed = len(cached) * self.settings.block_size
        if not sequence.reported:
            sequence.local_cached = sequence.computed
        return True

    def _schedule(self, sequence: Sequence) -> None:
        if sequence.scheduled_at is None:
            sequence.scheduled_at = self._clock.monotonic()
        self._running[sequence.wire_id] = sequence

    def _advance(self) -> list[Output]:
        outputs = []
        for sequence in list(self._running.values()):
            if sequence.wire_id not in self._running:
                continue  # pushed back for want of blocks by one before it
            sequence.computed = len(sequence.tokens)
            self._seal(sequence)
            token = sequence.next_token()
            finish, stop = sequence.finish(token, self.settings.max_model_len)
            outputs.append(self._output(sequence, token, finish, stop))
            if finish is None:
                self._make_room(sequence)
        return outputs

    def _output(self, sequence: Sequence, token: int, finish: Finish | None, stop: int | None) -> Output:
        output = Output(
            request_id=sequence.wire_id,
            new_token_ids=[token],
            finish_reason=finish,
            stop_reason=stop,
            **sequence.first_report(),
            **mock_logprobs.of_token(sequence.request, token),
        )
        if finish is not None:
            del self._running[sequence.wire_id]
            if sequence.transfer.get("do_remote_decode"):
                output.kv_transfer_params = self._pin(sequence)
            else:
                self._pool.release(sequence.holding)
        return output

    def _seal(self, sequence: Sequence) -> None:
        size = self.settings.block_size
        if self.settings.enable_prefix_caching:
            for block in range(len(sequence.holding.shared), sequence.computed // size):
                self._pool.seal(sequence.holding, sequence.tokens[block * size : (block + 1) * size])

    def _make_room(self, sequence: Sequence) -> None:
        """A block for the token just made, if it needs one; the newest sequences are pushed back for it."""
        if len(sequence.tokens) <= sequence.holding.blocks * self.settings.block_size:
            return
        while not self._pool.grow(sequence.holding, 1):
            newest = next(reversed(self._running.values()))
            del self._running[newest.wire_id]
            self._pool.release(newest.holding)
            self._waiting.appendleft(newest)
            if newest is sequence:
                return

    def _pin(self, sequence: Sequence) -> dict[str, Any]:
        """Keeps a finished prefill's blocks until they are collected; returns what the decode side needs for that."""
        lease = self._spawn(self._lease(sequence.wire_id))
        self._pinned[sequence.wire_id] = (sequence.holding, lease)
        offered = offer(self._engine_id, sequence.wire_id, sequence.holding.blocks, sequence.computed)
        cached = {"remote_prefill_cached_tokens": sequence.local_cached}
        return {**offered, **cached, "remote_host": self._host, "remote_port": self._port}

    async def _lease(self, wire_id: str) -> None:
        await self._clock.sleep(self.settings.lease_seconds)
        holding, _ = self._pinned.pop(wire_id)
        self._pool.release(holding)
        self._report()
        self._wake.set()

    async def _collect(self, sequence: Sequence) -> None:
        """Takes a prefill over; what can't be had is computed here instead."""
        began = self._clock.monotonic()
        blocks = sequence.holding.private
        try:
            async with dial(sequence.transfer) as ask:
                if await ask("collect") is None:
                    raise ConnectionError("the blocks are gone")
                if sequence.prompt_tokens != sequence.transfer["remote_num_tokens"]:
                    self.fail()  # NIXL's reader goes by the prompt alone: it dies, or takes what is no KV for some
                    return
                size = blocks * self.settings.kv_block_bytes
                await self._clock.sleep(size / self.settings.transfer_bytes_per_second)
                await ask("free")
        except (OSError, TimeoutError):
            self._transfers += Transfers(failed=1)
        else:
            self._transfers += Transfers(1, size, self._clock.monotonic() - began)
            # Of one that goes on, more than the prompt may have been cached here.
            sequence.external_cached = max(0, sequence.prompt_tokens - sequence.local_cached)
            sequence.computed = max(sequence.computed, sequence.prompt_tokens - 1)
        if self._collecting.pop(sequence.wire_id, None) is None:
            return  # aborted just as it ended
        sequence.collecting = None
        self._schedule(sequence)
        self._wake.set()

    async def _free_remote(self, transfer: Mapping[str, Any]) -> None:
        try:
            async with dial(transfer) as ask:
                await ask("free")
        except (OSError, TimeoutError):
            self._transfers += Transfers(failed=1)
            self._report()

    def _take(self, wire_id: str) -> Sequence | None:
        found = self._running.pop(wire_id, None) or self._collecting.pop(wire_id, None)
        if found is None:
            found = next((one for one in self._waiting if one.wire_id == wire_id), None)
            if found is not None:
                self._waiting.remove(found)
        return found

    def _report(self, outputs: Seq[Output] = ()) -> None:
        transfers, self._transfers = self._transfers, Transfers()
        now = self._clock.monotonic()
        self._steps.put_nowait(EngineStep(self.load, outputs, now, transfers, self._pool.take_events()))

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        """A part that broke is the engine's end, as in vLLM's: who waits for it must not wait for ever."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._lost is None:
            _log.error("mock_engine_broke", error)
            self.fail(f"the engine broke ({type(error).__name__})")
