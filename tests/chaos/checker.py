"""The one checker: what clients were told, and what the system says of itself, against the promises.

It reads what anyone can read: the clients' transcripts, a gateway's status and metrics, the machine's own tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.core import errors
from orchestrator.proto import cluster_pb2, cluster_pb2_grpc
from tests.chaos.bounds import within
from tests.chaos.transcript import CANCELLED, DONE, Ask, Attempt, Transcript

# What a cluster may say to a request that is right in itself, while it loses parts.
ALLOWED = {
    each.code
    for each in (errors.WorkerLost, errors.NotReady, errors.ClusterFull, errors.Overloaded, errors.DeadlineExceeded)
}
DEADLINE_SLACK = 5.0  # seconds on a busy machine
LOOK_SECONDS = 0.2
READ_SECONDS = 60.0


@dataclass(frozen=True)
class Window:
    """When a gateway was being lost: connections may break then, and only then."""

    began: float
    ended: float


def wrong_with(transcript: Transcript, windows: Sequence[Window] = (), stops: Sequence[Window] = ()) -> list[str]:
    """What of the promises a request's transcript breaks, in words. ``stops``: when a gateway's process was stopped."""
    ask, found = transcript.ask, []
    for number, attempt in enumerate(transcript.attempts):
        last = number == len(transcript.attempts) - 1
        found += _wrong_tokens(ask, attempt)
        if attempt.late:
            found.append(f"{attempt.late} events after the end")
        if last and len(attempt.ends) != 1:
            found.append(f"{len(attempt.ends)} outcomes: {attempt.ends}")
        if attempt.broke_at is not None:
            at = attempt.broke_at
            if not any(window.began <= at <= window.ended for window in windows):
                found.append("its connection broke, and no gateway was lost then")
    if transcript.attempts:
        found += _wrong_end(transcript, stops)
    return [f"request {ask.number}: {each}" for each in found]


def _wrong_tokens(ask: Ask, attempt: Attempt) -> list[str]:
    found = []
    for index, tokens in attempt.tokens.items():
        if index >= ask.n:
            found.append(f"sequence {index} was not asked for: other tokens than without faults")
            continue
        expected = ask.expected(index)
        if tokens != expected[: len(tokens)]:
            first = next((at for at, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), -1)
            found.append(f"sequence {index} has other tokens than without faults, from {first} of {len(tokens)}")
        ends = attempt.finished.get(index, [])
        if len(ends) > 1:
            found.append(f"sequence {index} finished {len(ends)} times")
        if ends and len(tokens) != len(expected):
            found.append(f"sequence {index} finished after {len(tokens)} of {len(expected)} tokens")
    return found


def _wrong_end(transcript: Transcript, stops: Sequence[Window]) -> list[str]:
    ask, attempt, outcome = transcript.ask, transcript.attempts[-1], transcript.outcome
    if outcome == DONE:
        missing = [index for index in range(ask.n) if not attempt.finished.get(index)]
        wrong = [f"done, and sequences {missing} never finished"] if missing else []
        for index, ends in attempt.finished.items():
            if index >= ask.n:
                continue
            reason = "stop" if ask.expected(index)[-1] == ask.stop_token else "length"
            if others := set(ends) - {reason}:
                wrong.append(f"sequence {index} finished with {others}, not {reason}")
        return wrong
    if outcome == CANCELLED:
        return []
    if outcome == errors.DeadlineExceeded.code and ask.deadline is None:
        return ["a deadline that it had not set was exceeded"]
    if outcome not in ALLOWED:
        return [f"it ended with {outcome}"]
    lived = attempt.ended - attempt.began - _stopped(attempt, stops)
    if ask.deadline is not None and lived > ask.deadline + DEADLINE_SLACK:
        return [f"it outlived its deadline of {ask.deadline:g} s: {lived:.1f} s"]
    return []


def _stopped(attempt: Attempt, stops: Sequence[Window]) -> float:
    """Seconds of it in which its gateway may have been stopped, and could tell nobody anything."""
    return sum(max(0.0, min(each.ended, attempt.ended) - max(each.began, attempt.began)) for each in stops)


@dataclass
class Accounts:
    """What the system says that it holds; ``open`` are gateways' own books, by (gateway, series)."""

    open: dict[tuple[str, str], float] = field(default_factory=dict)
    held: dict[tuple[str, str], float] = field(default_factory=dict)
    workers: dict[str, cluster_pb2.WorkerStatus] = field(default_factory=dict)

    def left(self) -> list[str]:
        """What should not be there while no request is."""
        found = [f"{gateway}: {name} is {value:g}" for (gateway, name), value in self.open.items() if value]
        for worker_id, worker in self.workers.items():
            if worker.running or worker.waiting or worker.kv_blocks_used:
                found.append(
                    f"{worker_id}: {worker.running} running, {worker.waiting} waiting, "
                    f"{worker.kv_blocks_used} KV blocks in use"
                )
        return found


_OPEN = ("segue_open_requests", "segue_queued_requests")
HELD = ("segue_tasks", "segue_open_descriptors", "segue_resident_bytes", "segue_worker_sessions")


async def accounts(url: str, rpc: str, gateways: int = 1) -> Accounts:
    """Read over the ports that everyone has. Each call of a shared port reaches one of ``gateways`` processes."""
    found = Accounts()
    seen: set[str] = set()
    async with within(READ_SECONDS, "reading what gateways hold"), _each_its_connection() as client:
        for _ in range(50 * gateways):
            for gateway, name, value in await _scraped(client, f"{url}/metrics"):
                seen.add(gateway)
                if name in _OPEN:
                    found.open[gateway, name] = value
                elif name in HELD:
                    found.held[gateway, name] = value
            if len(seen) >= gateways:
                break
    assert len(seen) >= gateways, f"only {sorted(seen)} answered for themselves"
    async with grpc.aio.insecure_channel(rpc, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        status = await cluster_pb2_grpc.ClusterStub(channel).Status(cluster_pb2.StatusRequest(), timeout=10)
    pools = [pool for model in status.models for pool in model.pools]
    found.workers = {worker.id: worker for pool in pools for worker in pool.workers}
    return found


def _each_its_connection() -> aiohttp.ClientSession:
    """On the loop, and not in its threads, which others may have left in waits of their own."""
    connector, limit = aiohttp.TCPConnector(force_close=True), aiohttp.ClientTimeout(total=10)
    return aiohttp.ClientSession(connector=connector, timeout=limit, raise_for_status=True)


async def _scraped(client: aiohttp.ClientSession, url: str) -> list[tuple[str, str, float]]:
    """(gateway, series, value), summed over its other labels."""
    async with client.get(url) as answer:
        text = await answer.text()
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.labels.get("gateway", ""), sample.name
            found[key] = found.get(key, 0.0) + sample.value
    return [(gateway, name, value) for (gateway, name), value in found.items()]


async def settled(read: Callable[[], asyncio.Future[Accounts]], seconds: float) -> Accounts:
    """The accounts once nothing is left; AssertionError with what is, after ``seconds``."""
    began = asyncio.get_running_loop().time()
    while True:
        found = await read()
        if not (left := found.left()):
            return found
        assert asyncio.get_running_loop().time() - began < seconds, f"left after {seconds:g} s: {'; '.join(left)}"
        await asyncio.sleep(LOOK_SECONDS)


def check(transcripts: Iterable[Transcript], windows: Sequence[Window] = (), stops: Sequence[Window] = ()) -> list[str]:
    """All that is wrong with all of them."""
    return [each for transcript in transcripts for each in wrong_with(transcript, windows, stops)]
