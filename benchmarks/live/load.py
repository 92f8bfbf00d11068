"""Open-loop clients: ``python -m benchmarks.live.load '{"address": ..., "model": ..., "trace": FILE, "out": FILE}'``.

Answers when it begins (``began``, by the machine's monotonic clock) and when it is through. Sends each request over
gRPC when its time has come, whatever became of those before it, and writes one JSON line a request: see
``results.Served``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import grpc
import grpc.aio
import uvloop

from benchmarks.live import trace
from benchmarks.live.children import answer, answers
from orchestrator.proto import inference_pb2 as pb
from orchestrator.proto import inference_pb2_grpc

REQUEST_SECONDS = 120.0
_BEGIN_SECONDS = 0.5
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def _request(model: str, asked: trace.Asked, salt: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=model,
        token_ids=pb.TokenIds(ids=trace.tokens(asked, salt)),
        sampling=pb.SamplingParams(temperature=0.0, max_tokens=asked.output_tokens, ignore_eos=True, detokenize=False),
    )


async def _serve(stub: Any, request: pb.GenerateRequest, at: float, out: TextIO) -> None:
    await asyncio.sleep(at - time.perf_counter())
    sent = time.perf_counter()
    times: list[float] = []
    counts: list[int] = []
    row: dict[str, Any] = {"late": sent - at, "times": times, "counts": counts, "error": ""}
    try:
        async for message in stub.Generate(request, timeout=REQUEST_SECONDS):
            count = sum(len(sequence.token_ids) for sequence in message.sequences)
            if count:
                times.append(time.perf_counter() - sent)
                counts.append(count)
            if message.HasField("placement"):
                place, usage = message.placement, message.usage
                row |= {"prefill_worker": place.prefill_worker, "decode_worker": place.decode_worker}
                row |= {"cached_tokens": usage.cached_tokens, "prompt_tokens": usage.prompt_tokens}
                row |= {"queue_seconds": place.queue_seconds, "prefill_seconds": place.prefill_seconds}
                row |= {"transfer_seconds": place.transfer_seconds, "gateway_ttft_seconds": place.ttft_seconds}
    except grpc.aio.AioRpcError as error:
        row["error"] = f"{error.code().name}: {error.details()}"
    print(json.dumps(row), file=out)


async def main() -> None:
    given = json.loads(sys.argv[1])
    said = answers()
    asked = list(trace.read(Path(given["trace"])))
    requests = [_request(given["model"], each, given.get("salt", 0)) for each in asked]
    async with grpc.aio.insecure_channel(given["address"], options=_OPTIONS) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        await channel.channel_ready()
        began = time.perf_counter() + _BEGIN_SECONDS
        answer(said, {"began": began})
        with Path(given["out"]).open("w") as out:  # noqa: ASYNC230  (a file of this process alone)
            await asyncio.gather(
                *(_serve(stub, request, began + each.at, out) for request, each in zip(requests, asked, strict=True))
            )
    answer(said, {"requests": len(asked), "seconds": time.perf_counter() - began})


if __name__ == "__main__":
    uvloop.run(main())
