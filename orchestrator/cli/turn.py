"""One question, one streamed answer, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.cli import rpc
from orchestrator.cli.terminal import byte_count, duration, without_control
from orchestrator.proto import inference_pb2 as pb

# For a whole answer; a small model on a laptop needs a fraction of it.
ANSWER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to ask for beside the messages; None or empty: the model's own default, or the only model."""

    model: str = ""
    max_tokens: int = 512
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """``first`` is seconds from asking to the first token, ``rest`` from there to the last one, as seen here."""

    text: str
    usage: pb.Usage
    placement: pb.Placement
    first: float
    rest: float

    @property
    def tokens_per_second(self) -> float | None:
        later = self.usage.completion_tokens - 1
        return later / self.rest if later > 0 and self.rest > 0 else None

    def account(self) -> str:
        """One line for people: where each half ran, what was moved, how fast."""
        place = self.placement
        if place.prefill_worker:
            moved = f"{byte_count(place.kv_bytes)} of KV cache moved ({self.usage.transferred_tokens} tokens)"
            parts = [f"prefill on {place.prefill_worker}", f"decode on {place.decode_worker}", moved]
        else:
            parts = [f"prefill and decode on {place.decode_worker or '?'}"]
        parts.append(f"TTFT {duration(place.ttft_seconds or self.first)}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        parts.append(f"{self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens")
        return " · ".join(parts)


def message(role: str, content: str) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=content)


def ask(address: str, messages: Sequence[pb.ChatMessage], wish: Wish, show: Callable[[str], None]) -> Answer:
    """Asks the gateway at host:port and shows text as it comes. Raises what the gateway raised."""
    sampling = pb.SamplingParams(max_tokens=wish.max_tokens)
    if wish.temperature is not None:
        sampling.temperature = wish.temperature
    request = pb.GenerateRequest(model=wish.model, chat=pb.Chat(messages=messages), sampling=sampling)
    began = time.monotonic()
    first = last = 0.0
    text, usage, placement = [], pb.Usage(), pb.Placement()
    for response in rpc.generate(address, request, ANSWER_SECONDS):
        for delta in response.sequences:
            last = time.monotonic()
            first = first or last
            added = without_control(delta.text)
            text.append(added)
            show(added)
        if response.HasField("usage"):
            usage = response.usage
        if response.HasField("placement"):
            placement = response.placement
    return Answer("".join(text), usage, placement, first=first - began if first else 0.0, rest=last - first)
