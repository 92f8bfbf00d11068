"""A request that lost its engine in mid-stream, as a new request that goes on from what was sent of its output."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from orchestrator.core.errors import SegueError
from orchestrator.core.types import SENT_TOKENS, WorkerInfo


def is_resumable(request: EngineCoreRequest, restores: bool) -> bool:
    """Whether the engine that goes on with it makes the tokens that the first one would have made.

    What depends on the output so far would begin anew unless engines restore it (``restores``): the grammar of
    structured output, penalties that count the output alone, words that may not follow, a seeded generator's state.
    A sample without a seed goes on from what was sent, which is right. A greedy one needs no seed.
    """
    params = request.sampling_params
    if params is None or request.prompt_token_ids is None or request.prompt_embeds is not None:
        return False
    if params.thinking_token_budget is not None or params.repetition_detection is not None:
        return False
    depends = (
        params.structured_outputs,
        params.bad_words,
        params.presence_penalty,
        params.frequency_penalty,
        params.seed is not None and params.temperature > 0,
    )
    return restores or not any(depends)


def restores(worker: WorkerInfo | None) -> bool:
    """Whether this worker's engine restores all that depends on the output so far."""
    return worker is not None and worker.facts is not None and worker.facts.restores


def prefilled(request: EngineCoreRequest, sent: Sequence[int], longer_prompt: bool) -> EngineCoreRequest:
    """What a prefill engine computes of it: all of the prompt that the decode engine will be told of, and nothing else.

    Who collects goes by its own prompt. Where that is longer than what was computed it would take what is no KV.
    """
    return _longer(request, sent) if sent and longer_prompt else request


def resumed(request: EngineCoreRequest, sent: Sequence[int], longer_prompt: bool, restores: bool) -> EngineCoreRequest:
    """The request as it goes on after these tokens of its output; itself where there are none.

    An engine that ``restores`` is told which they are. To any other they are the end of a longer prompt.

    Raises:
        SegueError: it can't go on so at this engine.
    """
    if not sent:
        return request
    if longer_prompt and is_resumable(request, restores=False):
        return _longer(request, sent)
    if longer_prompt or not restores:
        raise SegueError("what it goes on with depends on its output so far, and this worker restores nothing")
    variant = _variant(request)
    params = cast(SamplingParams, variant.sampling_params)
    params.extra_args = {**(params.extra_args or {}), SENT_TOKENS: list(sent)}
    return variant


def _longer(request: EngineCoreRequest, sent: Sequence[int]) -> EngineCoreRequest:
    variant = _variant(request)
    params = cast(SamplingParams, variant.sampling_params)
    if params.max_tokens is not None:
        params.max_tokens -= len(sent)
    params.min_tokens = max(0, params.min_tokens - len(sent))
    variant.prompt_token_ids = [*(request.prompt_token_ids or ()), *sent]
    return variant


def _variant(request: EngineCoreRequest) -> EngineCoreRequest:
    variant = copy.copy(request)
    params = variant.sampling_params = cast(SamplingParams, request.sampling_params).clone()
    # The client has those of the prompt: the front end takes them once.
    params.prompt_logprobs = params.prompt_logprob_token_ids = None
    return variant
