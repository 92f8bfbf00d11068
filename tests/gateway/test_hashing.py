"""What a gateway makes of a prompt are the hashes that ``core.blocks`` defines, and what an engine's own keys say."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

from orchestrator.core.blocks import MASK, chain, extra_term, root
from orchestrator.core.prompt_blocks import hashes
from orchestrator.gateway.hashing import blocks_of, prompt_blocks, root_of, vector_hashes

TERM = st.integers(0, (1 << 64) - 1)


@given(
    st.lists(st.integers(0, (1 << 32) - 1), max_size=300),
    st.integers(1, 40),
    st.integers(0, MASK),
    st.dictionaries(st.integers(0, 20), TERM, max_size=4),
)
def test_all_ways_make_the_same(tokens: list[int], size: int, start: int, extras: dict[int, int]) -> None:
    terms = [extras.get(number, 0) for number in range(len(tokens) // size)]
    expected = chain(start, 0, tokens, size, terms)
    assert list(prompt_blocks(tokens, size, start, extras)) == expected
    assert list(array("Q", vector_hashes(tokens, size, start, extras))) == expected
    assert hashes(tokens, size, start, extras) == expected


@pytest.mark.parametrize("length", [4096 * 3 - 1, 4096 * 3, 20_000])
def test_long_prompts_too(length: int) -> None:
    tokens = [(k * k) % 151_000 for k in range(length)]
    expected = chain(9, 0, tokens, 3)
    assert list(prompt_blocks(tuple(tokens), 3, 9)) == expected
    assert list(array("Q", vector_hashes(tokens, 3, 9, {}))) == expected
    assert hashes(tokens, 3, 9, {}) == expected


def request(tokens: list[int] | None = None, **fields: Any) -> Any:
    given = {"prompt_embeds": None, "mm_features": None, "lora_request": None, "cache_salt": None, **fields}
    return SimpleNamespace(prompt_token_ids=tokens, **given)


def test_a_request_s_adapter_and_salt_are_in_its_root() -> None:
    tokens = list(range(100))
    lora = SimpleNamespace(lora_name="poet")
    assert root_of("m") == root("m", "", "")
    assert list(blocks_of(request(tokens), "m", 16)) == chain(root("m"), 0, tokens, 16)
    found = blocks_of(request(tokens, lora_request=lora, cache_salt="tenant"), "m", 16)
    assert list(found) == chain(root("m", "poet", "tenant"), 0, tokens, 16)


def test_a_prompt_of_embeddings_has_no_hashes() -> None:
    assert not blocks_of(request(None, prompt_embeds=object()), "m", 16)
    assert not blocks_of(request([1] * 32, prompt_embeds=object()), "m", 16)


FEATURE = st.tuples(st.integers(0, 12), st.integers(1, 20))  # a gap before it, its length


@given(st.lists(FEATURE, min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 10))
def test_pictures_are_where_the_engine_says_they_are(gaps: list[tuple[int, int]], size: int, rest: int) -> None:
    features, end = [], 0
    for number, (gap, length) in enumerate(gaps):
        place = SimpleNamespace(offset=end + gap, length=length)
        features.append(SimpleNamespace(identifier=f"picture {number}", mm_position=place))
        end += gap + length
    tokens = [5] * (end + rest)
    asked = request(tokens, mm_features=features)
    terms, at = [], 0
    for start in range(0, len(tokens) - size + 1, size):
        keys, at = generate_block_hash_extra_keys(asked, start, start + size, at)
        terms.append(extra_term([(name, offset) for _, name, offset in keys or ()]))
    assert list(blocks_of(asked, "m", size)) == chain(root("m"), 0, tokens, size, terms)
