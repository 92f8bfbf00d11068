"""Log-probabilities of a mock engine: of the right shapes, made of nothing. Callers index what they asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from workers.wire import Logprobs, PromptLogprobs, Request

MOST = 32  # candidates, however many were asked for


def of_token(request: Request, token: int) -> dict[str, Any]:
    """The fields of an output with one new token."""
    params = request.sampling_params
    asked = params.logprobs if params is not None else None
    if asked is None:
        return {}
    ids = _candidates(token, asked)
    ranks = np.ones(1, np.int32)
    return {"new_logprobs": Logprobs(np.array([ids], np.int32), np.full((1, len(ids)), -1.0, np.float32), ranks)}


def of_prompt(request: Request) -> dict[str, Any]:
    """The fields of a request's first output."""
    params = request.sampling_params
    asked = params.prompt_logprobs if params is not None else None
    if asked is None or not request.prompt_token_ids:
        return {}
    rows = np.array([_candidates(token, asked) for token in request.prompt_token_ids], np.int32)
    ids = torch.from_numpy(rows[1:])  # nothing comes before the first
    values, ranks = torch.full(ids.shape, -1.0), torch.ones(len(ids), dtype=torch.int32)
    return {"new_prompt_logprobs_tensors": PromptLogprobs(ids, values, ranks)}


def _candidates(token: int, asked: int) -> list[int]:
    """The token itself, then the likeliest ones."""
    return [token, *range(min(max(asked, 0), MOST))]
