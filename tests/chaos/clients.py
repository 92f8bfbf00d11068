"""Clients as others have them: OpenAI's streams over HTTP, Segue's own over gRPC. They try again only where the
connection broke, as a gateway may die and another takes over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import aiohttp
import grpc
import grpc.aio

from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc
from tests.chaos.transcript import CANCELLED, DONE, HUNG, Ask, Attempt, Transcript, quiet, recorded
from tests.rpc.client import error_info

MOST_SECONDS = 120.0  # for one request, whatever happens
MOST_ATTEMPTS = 20
PAUSE_SECONDS = 0.25  # before a client connects again
CHANNEL = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500))


class Broken(Exception):  # noqa: N818
    """The connection went away in the middle, or there was none."""


def request_id(ask: Ask) -> str:
    """By which gateways know it, in all of its attempts."""
    return f"chaos-{ask.number}"


class Clients:
    """So many requests at a time, until all are through."""

    def __init__(self, url: str, rpc: str, model: str) -> None:
        self._url = url
        self._rpc = rpc
        self._model = model
        self.transcripts: list[Transcript] = []  # of requests that are through
        self.open: dict[int, Transcript] = {}  # of those that are not, by their asks' numbers

    async def run(self, asks: Iterable[Ask], at_a_time: int) -> None:
        waiting = iter(asks)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5), timeout=aiohttp.ClientTimeout(total=None)
        ) as http:
            await asyncio.gather(*(self._lane(waiting, http) for _ in range(at_a_time)))

    async def _lane(self, waiting: Iterator[Ask], http: aiohttp.ClientSession) -> None:
        for ask in waiting:
            transcript = self.open[ask.number] = Transcript(ask)
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    await self._persist(transcript, http)
            except TimeoutError:
                transcript.attempts[-1].ends.append(HUNG)
            finally:
                self.transcripts.append(self.open.pop(ask.number))

    async def _persist(self, transcript: Transcript, http: aiohttp.ClientSession) -> None:
        ask = transcript.ask
        while len(transcript.attempts) < MOST_ATTEMPTS:
            attempt = Attempt(time.monotonic())
            transcript.attempts.append(attempt)
            try:
                await (self._over_grpc(ask, attempt) if ask.grpc else self._over_http(ask, attempt, http))
                return
            except Broken:
                attempt.broke_at = time.monotonic()
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                attempt.ended = time.monotonic()

    async def _over_http(self, ask: Ask, attempt: Attempt, http: aiohttp.ClientSession) -> None:
        headers = {"x-request-id": request_id(ask)}
        if ask.deadline:
            headers["x-request-timeout"] = str(ask.deadline)
        try:
            async with http.post(f"{self._url}/v1/completions", json=self._body(ask), headers=headers) as response:
                if response.status != 200:
                    body = await response.json(content_type=None)
                    attempt.ends.append(_code(body))
                    attempt.said = str(body)
                    return
                async for line in response.content:
                    if line.startswith(b"data: ") and not _event(line[6:].strip(), attempt):
                        continue
                    if _leaves(ask, attempt):
                        attempt.ends.append(CANCELLED)
                        response.close()
                        return
        except (aiohttp.ClientError, ConnectionError, json.JSONDecodeError) as error:
            raise Broken from error
        if not attempt.ends:
            raise Broken  # an end of the stream that is no end of an answer

    def _body(self, ask: Ask) -> dict[str, Any]:
        chosen = {"stop_token_ids": [ask.stop_token]} if ask.stop_token is not None else {}
        return {
            "model": self._model,
            "prompt": list(ask.prompt),
            "max_tokens": ask.max_tokens,
            "n": ask.n,
            "seed": ask.seed,
            "temperature": 0.7 if ask.n > 1 or ask.seed is not None else 0.0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **chosen,
        }

    async def _over_grpc(self, ask: Ask, attempt: Attempt) -> None:
        sampling = pb.SamplingParams(
            max_tokens=ask.max_tokens,
            n=ask.n,
            seed=ask.seed,
            temperature=0.7 if ask.n > 1 or ask.seed is not None else 0.0,
            ignore_eos=True,
            stop_token_ids=[] if ask.stop_token is None else [ask.stop_token],
        )
        prompt = pb.TokenIds(ids=ask.prompt)
        asked = pb.GenerateRequest(model=self._model, token_ids=prompt, sampling=sampling, request_id=request_id(ask))
        async with grpc.aio.insecure_channel(self._rpc, options=CHANNEL) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(asked, timeout=ask.deadline)
            try:
                async for message in call:
                    now = time.monotonic()
                    for delta in message.sequences:
                        reason = pb.FinishReason.Name(delta.finish_reason).lower() if delta.finish_reason else None
                        attempt.heard(delta.index, list(delta.token_ids), reason, now)
                    if _leaves(ask, attempt):
                        attempt.ends.append(CANCELLED)
                        call.cancel()
                        return
                attempt.ends.append(DONE)
            except grpc.aio.AioRpcError as error:
                attempt.ends.append(_status(ask, error))
                attempt.said = error.details() or ""


async def in_quiet(clients: Clients, wanted: Iterable[Ask], at_a_time: int) -> list[Ask]:
    """The same requests, held to what comes of them while nothing goes wrong."""
    wanted, rng = list(wanted), Random(0)
    await clients.run([quiet(ask) for ask in wanted], at_a_time)
    answers = {one.ask.number: one for one in clients.transcripts}
    return [recorded(ask, answers[ask.number], rng) for ask in wanted]


def _status(ask: Ask, error: grpc.aio.AioRpcError) -> str:
    try:
        return str(error_info(error).reason)
    except ValueError:  # no details: it is not the gateway that speaks
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and ask.deadline:
            return "deadline_exceeded"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise Broken from error
        return f"untyped {error.code().name}: {error.details()}"


def _event(data: bytes, attempt: Attempt) -> bool:
    """Takes one in; whether it brought anything."""
    now = time.monotonic()
    if data == b"[DONE]":
        attempt.ends.append(DONE)
        return False
    event = json.loads(data)
    if "error" in event:
        attempt.ends.append(_code(event))
        attempt.said = str(event)
        return False
    for choice in event["choices"]:
        attempt.heard(choice["index"], choice.get("token_ids") or [], choice["finish_reason"], now)
    return True


def _code(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return str(code) if isinstance(code, str) else f"untyped {body!r:.200}"


def _leaves(ask: Ask, attempt: Attempt) -> bool:
    return ask.cancel_after is not None and attempt.output_tokens >= ask.cancel_after and not attempt.ends
