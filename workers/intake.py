"""What a worker won't pass on to its engine: requests that would hurt it, and so everybody else's.

vLLM's engine core trusts its front end; a request that the front end could not have made may end the whole engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.core.types import SENT_TOKENS, EngineFacts
from workers import wire

# What a KV connector reads without asking whether it is there.
_TRANSFER_TYPES: Mapping[str, type] = {
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "remote_block_ids": list,
}
_TOKEN_FIELDS = (
    "stop_token_ids",
    "_all_stop_token_ids",
    "allowed_token_ids",
    "logit_bias",
    "logprob_token_ids",
    "trace_decode_token_ids",
)
_ENGINES_OWN = ("data_parallel_rank", "client_index", "current_wave", "resumable", "abort_immediately")


def fault_of(wire_id: str, request: wire.Request, facts: EngineFacts, vocabulary: int) -> str | None:
    """What is wrong with a request, in words without any of its content; None if nothing is."""
    if request.request_id != wire_id:
        return "the request's id is not its wire id"
    return (
        _task_fault(request, facts)
        or _prompt_fault(request, facts, vocabulary)
        or transfer_fault_of(request)
        or _params_fault(request, vocabulary)
        or _sent_fault(request, facts, vocabulary)
        or _engines_own(request)
    )


def transfer_fault_of(request: wire.Request) -> str | None:
    """What is wrong with a request's transfer parameters, if it has any."""
    transfer = wire.transfer_params(request)
    if not isinstance(transfer, Mapping):
        return "the transfer parameters are no object"
    return transfer_fault(transfer) if transfer.get("do_remote_prefill") else None


def transfer_fault(transfer: Mapping[str, Any]) -> str | None:
    """What is wrong with the parameters that name a finished prefill; None if nothing is."""
    wrong = [name for name, kind in _TRANSFER_TYPES.items() if not isinstance(transfer.get(name), kind)]
    if not wrong and not _can_be_dialled(transfer["remote_host"], transfer["remote_port"]):
        wrong = ["remote_host and remote_port"]
    return f"the transfer has no usable {', '.join(wrong)}" if wrong else None


def _can_be_dialled(host: str, port: int) -> bool:
    try:
        return bool(host.encode("idna")) and 0 < port < 1 << 16
    except UnicodeError:
        return False


def _task_fault(request: wire.Request, facts: EngineFacts) -> str | None:
    if request.sampling_params is not None:
        return None if "generate" in facts.tasks else "this engine does not generate"
    if request.pooling_params is None:
        return "neither sampling nor pooling parameters"
    task = request.pooling_params.task
    return None if task in facts.tasks else f"this engine has no task {task}"


def _engines_own(request: wire.Request) -> str | None:
    """Fields that only an engine's own process sets."""
    named = [name for name in _ENGINES_OWN if getattr(request, name)]
    return f"{', '.join(named)} is not a gateway's to set" if named else None


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


def _params_fault(request: wire.Request, vocabulary: int) -> str | None:
    """What is wrong with a request's sampling parameters, if it has any.

    What vLLM checks without knowing a model is checked while a request is decoded; the rest its front end checks, where
    a request that came over the wire has not been.
    """
    params = request.sampling_params
    if params is None:
        return None
    if params.max_tokens is None:
        return "it has no max_tokens"
    logprobs = (params.logprobs, params.prompt_logprobs)
    if any(count is not None and count > vocabulary for count in logprobs):
        return f"more log-probabilities than the vocabulary of {vocabulary} has"
    return next((f"a token outside the vocabulary in its {name}" for name in _unknown(params, vocabulary)), None)


def _unknown(params: wire.Sampling, vocabulary: int) -> Iterator[str]:
    """The fields that name tokens which are not there."""
    for name in _TOKEN_FIELDS:
        tokens = getattr(params, name, None)
        if tokens is not None and any(not 0 <= token < vocabulary for token in tokens):
            yield name
    if any(not 0 <= token < vocabulary for word in params._bad_words_token_ids or () for token in word):
        yield "bad_words"


def _sent_fault(request: wire.Request, facts: EngineFacts, vocabulary: int) -> str | None:
    """What is wrong with the output that the request goes on after, if there is any."""
    params = request.sampling_params
    sent = (params.extra_args or {}).get(SENT_TOKENS) if params is not None else None
    if params is None or sent is None:
        return None
    if not facts.restores:
        return "this engine restores nothing of a request that it goes on with"
    if not isinstance(sent, list) or any(type(token) is not int for token in sent):
        return "the tokens that were sent are no list of tokens"
    if sent and (min(sent) < 0 or max(sent) >= vocabulary):
        return f"a token outside the vocabulary of {vocabulary} was sent"
    if request.prompt_token_ids is None:
        return "tokens were sent of a prompt that has none"
    room = facts.max_model_len - len(request.prompt_token_ids)
    limit = room if params.max_tokens is None else min(room, params.max_tokens)
    if len(sent) >= limit:
        return f"{len(sent)} tokens were sent, where {limit} end it"
    return None
