"""Which halves of a model can pass KV on to one another, for configurations and for plans."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.spec import AUTO, Device


@dataclass(frozen=True, slots=True)
class Half:
    """What counts of a pool. Sizes may be AUTO, and the maker of its devices empty as long as it isn't known."""

    device: Device
    tensor_parallel: int
    pipeline_parallel: int
    maker: str = ""


@dataclass(frozen=True, slots=True)
class Unlike:
    """In what two halves differ that they may not differ in, and what would do."""

    name: str
    prefill: str | int
    decode: str | int
    allowed: str = "the same in both"
    why: str = "the KV hand-over needs it"

    def __str__(self) -> str:
        return f"{self.name} {self.prefill} in prefill and {self.decode} in decode can't hand KV over"


def unlike(prefill: Half, decode: Half) -> Unlike | None:
    """Why these can't hand over; None if they can. What is left open isn't judged.

    GPUs of two makers take different builds of the engine, with layouts of their own; vLLM's NIXL connector takes as
    many stages on both sides, and splits KV heads of one rank over several of the other, or the other way round.
    """
    if prefill.device is not decode.device:
        return Unlike("device", prefill.device.value, decode.device.value)
    makers = (prefill.maker, decode.maker)
    if prefill.device is Device.GPU and all(makers) and makers[0] != makers[1]:
        return Unlike("devices by", *makers)
    stages = (prefill.pipeline_parallel, decode.pipeline_parallel)
    if AUTO not in stages and stages[0] != stages[1]:
        return Unlike("pipeline_parallel", *stages)
    tensors = (prefill.tensor_parallel, decode.tensor_parallel)
    if AUTO not in tensors and max(tensors) % min(tensors):
        why = "KV heads are split evenly between the two"
        return Unlike("tensor_parallel", *tensors, "one a multiple of the other", why)
    return None
