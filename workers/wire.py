"""vLLM's msgpack on the session: the one place (with ``engine``) that knows vLLM's types.

A message is a list of bytes: the msgpack itself, then the buffers of large tensors that it refers to by index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from vllm.distributed.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockStored, KVEventBatch
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.kv_cache_interface import KVCacheSpecKind
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from orchestrator.core.blocks import extra_term
from orchestrator.core.errors import ProtocolError
from orchestrator.core.mirror import BlocksRemoved, BlocksStored, CacheEvent, Cleared

Request = EngineCoreRequest
Sampling = SamplingParams
Output = EngineCoreOutput
Finish = FinishReason
Prefill = PrefillStats
Logprobs = LogprobsLists
PromptLogprobs = LogprobsTensors
Event = EngineCoreEvent
EventType = EngineCoreEventType

_encoder = MsgpackEncoder()
_requests = MsgpackDecoder(EngineCoreRequest)
_outputs = MsgpackDecoder(EngineCoreOutputs)
_kv_events = msgspec.msgpack.Decoder(KVEventBatch)
_ATTENDS_TO_ALL = {
    None,
    KVCacheSpecKind.FULL_ATTENTION.value,
    KVCacheSpecKind.MLA_ATTENTION.value,
    KVCacheSpecKind.SINK_FULL_ATTENTION.value,
}
_REPORT_MODE = "kv_cache_report_mode"


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


class CacheEvents:
    """Reads what one engine's prefix-cache publisher says of blocks on the device.

    An engine whose layers attend differently keeps a cache for each group of them. One group stands for all here: the
    first one heard of that attends to everything, as no prefix is longer than what that has; without one, the first.
    """

    def __init__(self) -> None:
        self._group: int | None = None
        self._attends_to_all = False

    def read(self, payload: bytes) -> list[CacheEvent]:
        """The events of a batch."""
        found: list[CacheEvent] = []
        for event in _kv_events.decode(payload).events:
            if isinstance(event, AllBlocksCleared):
                found.append(Cleared())
                continue
            if event.medium not in (None, MEDIUM_GPU) or event.locality == "REMOTE":
                continue
            if isinstance(event, BlockStored) and self._prefers(event):
                found.append(Cleared())
            if (event.group_idx or 0) != self._group:
                continue
            found.append(_stored(event) if isinstance(event, BlockStored) else BlocksRemoved(event.block_hashes))
        return found

    def _prefers(self, event: BlockStored) -> bool:
        """Whether the event's group stands for all from here on, where another did until now."""
        attends_to_all = event.kv_cache_spec_kind in _ATTENDS_TO_ALL
        if self._group is not None and (self._attends_to_all or not attends_to_all):
            return False
        before, self._group = self._group, event.group_idx or 0
        self._attends_to_all = attends_to_all
        return before not in (None, self._group)


def _stored(event: BlockStored) -> BlocksStored:
    """What blocks are made of besides tokens stands untagged in ``extra_keys``: the adapter's name first, then images
    and sounds as (identity, place) pairs, the salt as a string, digests of prompt embeddings as bytes."""
    adapter, salt, extras = event.lora_name or "", "", []
    for number, keys in enumerate(event.extra_keys or ()):
        rest = list(keys or ())
        if adapter and rest and rest[0] == adapter:
            del rest[0]
        if number == 0 and event.parent_block_hash is None:
            salt = next((key for key in rest if isinstance(key, str)), "")
        pairs = [tuple(key) for key in rest if isinstance(key, list | tuple)]
        pairs += [(key, 0) for key in rest if isinstance(key, bytes)]
        extras.append(extra_term(pairs))
    return BlocksStored(
        event.block_hashes, event.parent_block_hash, event.token_ids, adapter, salt, extras if any(extras) else ()
    )


def tell_once(request: Request) -> None:
    """Takes out a wish to be told again of blocks that are cached already: whoever counts what is stored and removed
    would never see those go."""
    params = request.sampling_params
    if params is not None and params.extra_args and _REPORT_MODE in params.extra_args:
        params.extra_args = {name: value for name, value in params.extra_args.items() if name != _REPORT_MODE}


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


def _decode(decoder: MsgpackDecoder, parts: Sequence[bytes], kind: type) -> Any:
    if not parts:
        raise ProtocolError(f"no bytes where an {kind.__name__} should be")
    try:
        return decoder.decode([bytearray(part) for part in parts])  # tensors are views: they need memory of their own
    except (msgspec.DecodeError, msgspec.ValidationError, NotImplementedError) as error:
        raise ProtocolError(f"not an {kind.__name__}: {error}") from error
    except Exception as error:
        # vLLM's tensor hooks trust their input; what they trip over is the sender's fault all the same.
        raise ProtocolError(f"not an {kind.__name__}: {type(error).__name__}") from error
