"""One sequence in a mock engine: which token comes next, and when it ends."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from orchestrator.core.types import SENT_TOKENS
from workers import mock_logprobs
from workers.mock_blocks import Holding, Kinship
from workers.wire import Event, EventType, Finish, Prefill, Request, transfer_params


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ordinary tokens ``first`` to ``first + size - 1``. One token in ``eos_one_in`` is the end (0: none ever is)."""

    first: int = 1000
    size: int = 3000
    eos_one_in: int = 0


@dataclass(slots=True)
class Sequence:
    """The next token is a function of all tokens before it, so that any engine continues a sequence the same way: one
    whose prompt ends with what was sent, or one that is told of what was sent beside its prompt."""

    request: Request
    vocabulary: Vocabulary
    tokens: array[int]
    queued_at: float
    scheduled_at: float | None = None
    computed: int = 0  # tokens whose KV is there
    local_cached: int = 0
    external_cached: int = 0
    holding: Holding = field(default_factory=Holding)
    collecting: asyncio.Task[None] | None = None
    reported: bool = False  # whether its first output, with the prefill's statistics, is out
    sent_tokens: int = 0  # of its output: what another engine made of it
    _checksum: int = 0

    @classmethod
    def of(cls, request: Request, vocabulary: Vocabulary, now: float) -> Sequence:
        params = request.sampling_params
        sent = (params.extra_args or {}).get(SENT_TOKENS, ()) if params is not None else ()
        tokens = array("I", (*(request.prompt_token_ids or ()), *sent))
        return cls(request, vocabulary, tokens, now, sent_tokens=len(sent), _checksum=crc32(tokens.tobytes()))

    @property
    def wire_id(self) -> str:
        return self.request.request_id

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids or ())

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def kinship(self) -> Kinship:
        """With whom its blocks can be shared."""
        lora = self.request.lora_request
        return Kinship(lora.lora_name if lora is not None else "", self.request.cache_salt or "")

    @property
    def transfer(self) -> Mapping[str, Any]:
        return transfer_params(self.request)

    def next_token(self) -> int:
        """Appends the next token and returns it."""
        token = self.vocabulary.first + self._checksum % self.vocabulary.size
        params = self.request.sampling_params
        one_in = self.vocabulary.eos_one_in
        eos = params.eos_token_id if params is not None else None
        if one_in and eos is not None and self._checksum % one_in == 0:
            token = eos
        self.tokens.append(token)
        self._checksum = crc32(array("I", (token,)).tobytes(), self._checksum)
        return token

    def finish(self, token: int, max_model_len: int) -> tuple[Finish | None, int | None]:
        """Whether ``token``, just appended, was the last one, and the stop token that made it so."""
        params = self.request.sampling_params
        if params is None:
            return Finish.STOP, None
        if self.output_tokens >= params.min_tokens:
            if token == params.eos_token_id:
                return Finish.STOP, None
            if token in (params.stop_token_ids or ()):
                return Finish.STOP, token
        limit = params.max_tokens if params.max_tokens is not None else max_model_len
        if self.output_tokens >= limit or len(self.tokens) >= max_model_len:
            return Finish.LENGTH, None
        return None, None

    def first_report(self) -> dict[str, Any]:
        """What goes with a sequence's first output only."""
        if self.reported:
            return {}
        self.reported = True
        stats = Prefill()
        stats.set(self.prompt_tokens + self.sent_tokens, self.local_cached, self.external_cached)
        scheduled = self.scheduled_at if self.scheduled_at is not None else self.queued_at
        events = [Event(EventType.QUEUED, self.queued_at), Event(EventType.SCHEDULED, scheduled)]
        return {"prefill_stats": stats, "events": events, **mock_logprobs.of_prompt(self.request)}
