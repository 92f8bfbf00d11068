"""Block hashes of a client's prompt (``core.blocks`` defines them), fast enough to make for each request."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.compiled import is_compiled
from orchestrator.core import blocks
from orchestrator.core.prompt_blocks import hashes as native_hashes

_Words = NDArray[np.uint64]
_MASK = np.uint64(blocks.MASK)
_START = np.uint64(blocks.START)
_WORD = "L" if array("L").itemsize == 8 else "Q"  # 64 bits; where there are both, the former is quicker to fill
_HALF = np.uint64(32)
_NO_EXTRAS: Mapping[int, int] = {}
_NATIVE = is_compiled()


class Request(Protocol):
    """What of vLLM's EngineCoreRequest says which blocks its prompt has."""

    prompt_token_ids: list[int] | None
    prompt_embeds: Any
    mm_features: Any  # each with an identifier and an mm_position of offset and length, by offset
    lora_request: Any  # with a lora_name
    cache_salt: str | None


@lru_cache(256)
def root_of(model: str, adapter: str | None = None, cache_salt: str | None = None) -> int:
    """The root of a prompt's hashes; a worker makes the same of what its engine tells."""
    return blocks.root(model, adapter or "", cache_salt or "")


def blocks_of(request: Request, model: str, block_size: int) -> array[int]:
    """Hashes of a request's full blocks; none where embeddings stand in for tokens, which engines tell nothing of that
    a gateway could compare."""
    tokens = request.prompt_token_ids
    if tokens is None or request.prompt_embeds is not None:
        return array(_WORD)
    lora = request.lora_request
    root = root_of(model, lora.lora_name if lora else None, request.cache_salt)
    extras = _extras(request.mm_features, block_size) if request.mm_features else _NO_EXTRAS
    return prompt_blocks(tokens, block_size, root, extras)


def prompt_blocks(
    tokens: Sequence[int], block_size: int, root: int, extras: Mapping[int, int] = _NO_EXTRAS
) -> array[int]:
    """Hashes of the full blocks of ``tokens``; ``extras`` by the number of the block, from 0."""
    if not isinstance(tokens, list):
        tokens = list(tokens)
    make = native_hashes if _NATIVE else vector_hashes
    return array(_WORD, make(tokens, block_size, root, extras))


def vector_hashes(tokens: list[int], block_size: int, root: int, extras: Mapping[int, int]) -> bytes:
    """The same as the machine's words, where there is no native code to make them."""
    count = len(tokens) // block_size
    if not count:
        return b""
    words = array(_WORD)
    # Of all ways from a list of integers to a machine's numbers this is the quickest, four times as quick as numpy's.
    words.fromlist(tokens)
    matrix = np.frombuffer(words, np.uint64, count * block_size).reshape(count, block_size)
    terms = np.vecdot(matrix, _coefficients(block_size))
    for number, extra in extras.items():
        if number < count:
            terms[number : number + 1] += np.uint64(extra)  # arrays wrap around; single numbers warn
    terms += _START
    terms ^= terms >> _HALF
    terms *= _powers(count)
    terms[:1] += np.uint64(root)
    np.add.accumulate(terms, out=terms)
    terms &= _MASK
    return bytes(terms.data)


def _extras(features: Any, block_size: int) -> dict[int, int]:
    """For each block that a picture or a sound reaches into: which, and where it begins, seen from the block's start
    (vllm.v1.core.kv_cache_utils._gen_mm_extra_hash_keys)."""
    found: dict[int, list[tuple[str | bytes, int]]] = {}
    for feature in features:
        begin = feature.mm_position.offset
        for number in range(begin // block_size, -(-(begin + feature.mm_position.length) // block_size)):
            found.setdefault(number, []).append((feature.identifier, begin - number * block_size))
    return {number: blocks.extra_term(items) for number, items in found.items()}


@cache
def _coefficients(block_size: int) -> _Words:
    return np.array(blocks.coefficients(block_size), np.uint64)


def _powers(count: int) -> _Words:
    """STEP to the 1st, 2nd ... power, mod 2^64."""
    return _powers_table(max(4096, 1 << (count - 1).bit_length()))[:count]


@cache
def _powers_table(size: int) -> _Words:
    return np.multiply.accumulate(np.full(size, blocks.STEP, np.uint64))
