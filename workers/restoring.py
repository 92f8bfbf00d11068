"""In an engine's processes: a request that goes on from what another engine made of it is taken up where that one was.

``SENT_TOKENS`` among a request's extra arguments has the tokens of its output that its client has. To the scheduler
and to the model runner they are output, as that of a request that was preempted is: limits, penalties and words that
may not follow go by it. The grammar of structured output is advanced over it, a seeded generator moved on.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from orchestrator.core.types import SENT_TOKENS

# What one draw moves CUDA's generator by; vLLM takes a draw back by the same number.
_CUDA_STEP = 4


def install() -> None:
    """In each process of an engine, before it makes a model runner. Raises where vLLM is not as it is known here."""
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.worker import gpu_input_batch

    known = gpu_input_batch.CachedRequestState
    if getattr(known, "restores", False):
        return
    gpu_input_batch.CachedRequestState = _restoring(known)  # type: ignore[misc]
    if runner := sys.modules.get("vllm.v1.worker.gpu_model_runner"):  # which has taken the class by its name
        runner.CachedRequestState = gpu_input_batch.CachedRequestState  # type: ignore[attr-defined]
    Request.from_engine_core_request = classmethod(  # type: ignore[method-assign, assignment]
        _with_output(Request.from_engine_core_request.__func__)  # type: ignore[attr-defined]
    )
    StructuredOutputManager._create_grammar = _advancing(  # type: ignore[method-assign]
        StructuredOutputManager._create_grammar
    )


def is_whole(config: Any) -> bool:
    """Whether all of that is restored in an engine of this ``VllmConfig``.

    vLLM's second model runner keeps requests in another way. A grammar that begins where reasoning ends would have to
    be told where that was. Where tokens are guessed ahead a seeded generator draws more than once for some.
    """
    return not (
        config.use_v2_model_runner
        or config.structured_outputs_config.reasoning_parser
        or config.speculative_config is not None
    )


def sent_tokens(params: Any) -> list[int]:
    """The output that a request begins with; none for any other."""
    extra = params.extra_args if params is not None else None
    return list(extra.get(SENT_TOKENS, ())) if extra else []


def _with_output(make: Any) -> Any:
    """In place of what makes the scheduler's request."""

    @wraps(make)
    def made(cls: Any, *args: Any, **kwargs: Any) -> Any:
        request = make(cls, *args, **kwargs)
        if sent := sent_tokens(request.sampling_params):
            request.append_output_token_ids(sent)
            # The scheduler ends the engine where more than a prompt turns out to be cached, but of a request that was
            # preempted. Limits go by the output itself.
            request.num_prompt_tokens = request.num_tokens
        return request

    return made


def _restoring(known: Any) -> Any:
    """In place of the class whose instances a model runner keeps of its requests."""

    import torch

    class Rewinding(torch.Generator):
        """For CPUs, whose generators know no offset. vLLM asks for it to take back what it drew for a part of a
        prompt, and would end the engine."""

        state: Any

        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> torch.Generator:
            self.manual_seed(self.initial_seed())
            _advance(self, len(self.state.output_token_ids))
            return self

    class RestoringState(known):  # type: ignore[misc]
        restores = True

        def __init__(self, **fields: Any) -> None:
            sent = sent_tokens(fields["sampling_params"])
            super().__init__(**{**fields, "output_token_ids": sent} if sent else fields)
            generator = fields["generator"]
            if generator is not None and generator.device.type == "cpu":
                seed, generator = generator.initial_seed(), Rewinding()
                generator.manual_seed(seed)
                generator.state = self
                self.generator: Any = generator
            if sent and generator is not None:
                _advance(generator, len(sent))

    return RestoringState


def _advance(generator: Any, draws: int) -> None:
    """To where it is after that many tokens."""
    import torch

    if generator.device.type == "cpu":
        for _ in range(draws):
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)  # as vLLM's sampler on CPUs draws
        return
    generator.set_offset(generator.get_offset() + _CUDA_STEP * draws)


def _advancing(create: Any) -> Any:
    """In place of what makes a request's grammar."""

    @wraps(create)
    def created(self: Any, request: Any) -> Any:
        grammar = create(self, request)
        sent = sent_tokens(request.sampling_params)
        if sent and not grammar.accept_tokens(request.request_id, sent):
            raise ValueError(f"the grammar does not accept the {len(sent)} tokens that were sent already")
        return grammar

    return created
