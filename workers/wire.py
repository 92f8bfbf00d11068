"""vLLM's msgpack on the session: the one place (with ``engine``) that knows vLLM's types.

A message is a list of bytes: the msgpack itself, then the buffers of large tensors that it refers to by index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from orchestrator.core.errors import ProtocolError
from orchestrator.proto.worker_pb2 import BlocksRemoved, BlocksStored, KvEvent

Request = EngineCoreRequest
Output = EngineCoreOutput
Finish = FinishReason
Prefill = PrefillStats
Event = EngineCoreEvent
EventType = EngineCoreEventType

_encoder = MsgpackEncoder()
_requests = MsgpackDecoder(EngineCoreRequest)
_outputs = MsgpackDecoder(EngineCoreOutputs)
_kv_events = msgspec.msgpack.Decoder(KVEventBatch)


def encode_request(request: Request) -> list[bytes]:
    """A request as it goes into ``Submit.request``."""
    return _encode(request)


def decode_request(parts: Sequence[bytes]) -> Request:
    """Raises ProtocolError where the bytes are no request of the vLLM that runs here."""
    return _decode(_requests, parts, EngineCoreRequest)  # type: ignore[no-any-return]


def encode_outputs(outputs: Sequence[Output], timestamp: float) -> list[bytes]:
    """Outputs of one step as they go into ``Step.outputs``; ``timestamp`` is the engine's monotonic clock."""
    return _encode(EngineCoreOutputs(outputs=list(outputs), timestamp=timestamp))


def decode_outputs(parts: Sequence[bytes]) -> EngineCoreOutputs:
    """Raises ProtocolError where the bytes are no outputs of the vLLM that runs here."""
    return _decode(_outputs, parts, EngineCoreOutputs)  # type: ignore[no-any-return]


def decode_kv_events(payload: bytes) -> list[KvEvent]:
    """A batch of vLLM's prefix-cache publisher."""
    found: list[KvEvent] = []
    for event in _kv_events.decode(payload).events:
        if isinstance(event, BlockStored):
            stored = BlocksStored(
                block_hashes=[_hash(each) for each in event.block_hashes],
                parent_hash=b"" if event.parent_block_hash is None else _hash(event.parent_block_hash),
                token_ids=event.token_ids,
                block_size=event.block_size,
                lora_name=event.lora_name or "",
            )
            found.append(KvEvent(stored=stored))
        elif isinstance(event, BlockRemoved):
            found.append(KvEvent(removed=BlocksRemoved(block_hashes=[_hash(each) for each in event.block_hashes])))
        elif isinstance(event, AllBlocksCleared):
            found.append(KvEvent(cleared=True))
    return found


def transfer_params(request: Request) -> Mapping[str, Any]:
    """The request's ``kv_transfer_params``; empty if it has none."""
    params = request.sampling_params
    extra = params.extra_args if params is not None else None
    return (extra or {}).get("kv_transfer_params") or {}


def release_request(wire_id: str, transfer: Mapping[str, Any] | None, now: float) -> Request:
    """A request that is over at once: the KV connector's clean-up hook tells the prefill side to free the blocks.

    With no ``transfer`` all that it does is make the engine step once.
    """
    extra = {"kv_transfer_params": dict(transfer)} if transfer is not None else None
    return EngineCoreRequest(
        request_id=wire_id,
        prompt_token_ids=[0],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=1, extra_args=extra, watermarking=False),
        pooling_params=None,
        arrival_time=now,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        abort_immediately=True,
    )


def _encode(message: Request | EngineCoreOutputs) -> list[bytes]:
    return [part if isinstance(part, bytes) else bytes(cast(bytearray, part)) for part in _encoder.encode(message)]


def _hash(block: bytes | int) -> bytes:
    """vLLM names a block by its digest, or by the digest's last 64 bits."""
    return block if isinstance(block, bytes) else (block & (1 << 64) - 1).to_bytes(8, "big")


def _decode(decoder: MsgpackDecoder, parts: Sequence[bytes], kind: type) -> Any:
    if not parts:
        raise ProtocolError(f"no bytes where an {kind.__name__} should be")
    try:
        return decoder.decode([bytearray(part) for part in parts])  # tensors are views: they need memory of their own
    except (msgspec.DecodeError, msgspec.ValidationError, NotImplementedError) as error:
        raise ProtocolError(f"not an {kind.__name__}: {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError) as error:
        # vLLM's tensor hooks trust their input; what they trip over is the sender's fault all the same.
        raise ProtocolError(f"not an {kind.__name__}: {type(error).__name__}") from error
