"""vLLM's step outputs as messages. Knows their shape and nothing of vLLM's code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.core.errors import WorkerLost
from orchestrator.core.types import RequestReport
from orchestrator.proto import inference_pb2 as pb

_REASONS = {
    "stop": pb.STOP,
    "length": pb.LENGTH,
    "abort": pb.ABORT,
    "repetition": pb.REPETITION,
}


class Deltas:
    """One request's stream: each output becomes a message, and the totals its last one."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self.output_tokens = 0

    def message(self, output: Any) -> pb.GenerateResponse | None:
        """What a ``RequestOutput`` adds; None if that is nothing (a prompt that is being read in chunks).

        Raises:
            WorkerLost: a sequence ended in an error of the engine, whatever came before.
        """
        self._prompt_tokens = len(output.prompt_token_ids or ()) or self._prompt_tokens
        self._cached_tokens = output.num_cached_tokens or self._cached_tokens
        response = pb.GenerateResponse(
            request_id=self._request_id,
            sequences=[_sequence(each) for each in output.outputs if _says_something(each)],
            prompt_logprobs=[_position(each) for each in output.prompt_logprobs or ()],
        )
        if (scores := getattr(output, "prompt_token_id_logprobs", None)) is not None:
            response.prompt_token_id_logprobs.extend(pb.Scores(logprobs=row) for row in scores.tolist())
        self.output_tokens += sum(len(sequence.token_ids) for sequence in response.sequences)
        return response if response.sequences or response.prompt_logprobs else None

    def totals(self, reports: Sequence[RequestReport]) -> pb.GenerateResponse:
        """The last message: usage, and where the halves ran as far as the seam reported it."""
        first = reports[0] if reports else None
        usage = pb.Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.output_tokens,
            cached_tokens=first.cached_tokens if first else self._cached_tokens,
            transferred_tokens=first.transferred_tokens if first else 0,
        )
        placement = _placement(first, sum(report.kv_bytes for report in reports)) if first else None
        return pb.GenerateResponse(request_id=self._request_id, usage=usage, placement=placement)


def _says_something(output: Any) -> bool:
    return bool(output.token_ids or output.text or output.finish_reason)


def _sequence(output: Any) -> pb.SequenceDelta:
    if output.finish_reason == "error":
        raise WorkerLost("the engine failed in this request", hint="try again", retry_after=1.0)
    delta = pb.SequenceDelta(
        index=output.index,
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=_REASONS[output.finish_reason] if output.finish_reason else pb.FINISH_REASON_UNSPECIFIED,
    )
    if output.logprobs:
        chosen = zip(output.token_ids, output.logprobs, strict=True)
        delta.logprobs.extend(_position(position, token_id) for token_id, position in chosen)
    if isinstance(output.stop_reason, str):
        delta.stop_reason = output.stop_reason
    elif output.stop_reason is not None:
        delta.stop_token_id = output.stop_reason
    return delta


def _position(position: Mapping[int, Any] | None, chosen: int | None = None) -> pb.TokenLogprobs:
    """vLLM's dict has the chosen token first, then the most likely; ``chosen`` makes sure of it."""
    entries: Iterable[tuple[int, Any]] = (position or {}).items()
    if chosen is not None:
        entries = sorted(entries, key=lambda entry: entry[0] != chosen)
    return pb.TokenLogprobs(candidates=[_candidate(token_id, entry) for token_id, entry in entries])


def _candidate(token_id: int, entry: Any) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=token_id, logprob=entry.logprob, rank=entry.rank or 0, token=entry.decoded_token or ""
    )


def _placement(report: RequestReport, kv_bytes: int) -> pb.Placement:
    return pb.Placement(
        prefill_worker=report.prefill_worker,
        decode_worker=report.decode_worker,
        kv_bytes=kv_bytes,
        queue_seconds=report.queue_seconds or 0.0,
        prefill_seconds=report.prefill_seconds or 0.0,
        transfer_seconds=report.transfer_seconds or 0.0,
        ttft_seconds=report.ttft_seconds or 0.0,
    )
