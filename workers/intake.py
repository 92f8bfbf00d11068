"""What a worker won't pass on to its engine: requests that would hurt it, and so everybody else's.

vLLM's engine core trusts its front end; a request that the front end could not have made may end the whole engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.types import EngineFacts
from workers import wire

# What a KV connector reads without asking whether it is there.
_TRANSFER_TYPES: Mapping[str, type] = {
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "remote_block_ids": list,
}


def fault_of(wire_id: str, request: wire.Request, facts: EngineFacts, vocabulary: int) -> str | None:
    """What is wrong with a request, in words without any of its content; None if nothing is."""
    if request.request_id != wire_id:
        return "the request's id is not its wire id"
    return _task_fault(request, facts) or _prompt_fault(request, facts, vocabulary) or transfer_fault_of(request)


def transfer_fault_of(request: wire.Request) -> str | None:
    """What is wrong with a request's transfer parameters, if it has any."""
    transfer = wire.transfer_params(request)
    if not isinstance(transfer, Mapping):
        return "the transfer parameters are no object"
    return transfer_fault(transfer) if transfer.get("do_remote_prefill") else None


def transfer_fault(transfer: Mapping[str, Any]) -> str | None:
    """What is wrong with the parameters that name a finished prefill; None if nothing is."""
    wrong = [name for name, kind in _TRANSFER_TYPES.items() if not isinstance(transfer.get(name), kind)]
    return f"the transfer has no usable {', '.join(wrong)}" if wrong else None


def _task_fault(request: wire.Request, facts: EngineFacts) -> str | None:
    if request.sampling_params is not None:
        return None if "generate" in facts.tasks else "this engine does not generate"
    if request.pooling_params is None:
        return "neither sampling nor pooling parameters"
    task = request.pooling_params.task
    return None if task in facts.tasks else f"this engine has no task {task}"


def _prompt_fault(request: wire.Request, facts: EngineFacts, vocabulary: int) -> str | None:
    tokens = request.prompt_token_ids
    if tokens is None:
        return None if request.prompt_embeds is not None else "no prompt"
    if not tokens:
        return "an empty prompt"
    # A generated token needs a place after the prompt.
    limit = facts.max_model_len - (request.sampling_params is not None)
    if len(tokens) > limit:
        return f"a prompt of {len(tokens)} tokens, where {limit} fit"
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        return f"a token outside the vocabulary of {vocabulary}"
    return None
