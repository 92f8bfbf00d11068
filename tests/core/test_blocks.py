"""A block's hash names all tokens up to the block's end, and with whom they can be shared."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.blocks import BITS, chain, coefficients, extra_term, root

TOKENS = st.lists(st.integers(0, 200_000), max_size=60)


@given(TOKENS, st.integers(1, 20), st.integers(0, 59))
def test_a_chain_goes_on_where_it_was_left(tokens: list[int], size: int, cut: int) -> None:
    whole = chain(root("m"), 0, tokens, size)
    assert len(whole) == len(tokens) // size
    head = min(cut // size, len(whole))
    before = whole[head - 1] if head else root("m")
    assert whole[:head] + chain(before, head, tokens[head * size :], size) == whole
    assert all(0 <= block < 1 << BITS for block in whole)


@given(TOKENS, st.integers(1, 8), st.data())
def test_a_token_changes_its_block_and_all_after_it(tokens: list[int], size: int, data: st.DataObject) -> None:
    whole = chain(root("m"), 0, tokens, size)
    if not whole:
        return
    place = data.draw(st.integers(0, len(whole) * size - 1))
    other = [*tokens[:place], tokens[place] + data.draw(st.integers(1, 1 << 31)), *tokens[place + 1 :]]
    changed = chain(root("m"), 0, other, size)
    same = [one == two for one, two in zip(whole, changed, strict=True)]
    assert same == [True] * (place // size) + [False] * (len(whole) - place // size)


def test_prompts_that_look_alike_differ() -> None:
    """Runs of one token, blocks in another order, a token moved by a block: all that a sum could mix up."""
    seen: set[int] = set()
    blocks = list(itertools.product((0, 1, 2), repeat=4))
    for first, second in itertools.product(blocks, repeat=2):
        seen.add(chain(root("m"), 0, [*first, *second], 4)[-1])
    assert len(seen) == len(blocks) ** 2
    runs = {tuple(chain(root("m"), 0, [token] * 64, 16)) for token in range(2000)}
    assert len({block for run in runs for block in run}) == 4 * 2000


def test_models_adapters_and_salts_share_nothing() -> None:
    names = ["", "a", "b", "ab"]
    roots = {root(model, adapter, salt) for model in names for adapter in names for salt in names}
    assert len(roots) == len(names) ** 3
    tokens = list(range(16))
    assert not set(chain(root("m"), 0, tokens, 4)) & set(chain(root("m", salt="tenant"), 0, tokens, 4))


def test_what_a_block_is_made_of_besides_tokens_counts() -> None:
    tokens, plain = [7] * 12, chain(root("m"), 0, [7] * 12, 4)
    picture = extra_term([("picture", 2)])
    assert extra_term([]) == 0
    assert len({extra_term([("picture", place)]) for place in range(-5, 5)}) == 10
    assert extra_term([("ab", 0), ("c", 0)]) != extra_term([("a", 0), ("bc", 0)])
    assert chain(root("m"), 0, tokens, 4, [0, 0, 0]) == plain
    with_picture = chain(root("m"), 0, tokens, 4, [0, picture, 0])
    assert with_picture[0] == plain[0]
    assert not set(with_picture[1:]) & set(plain)


def test_the_hashes_are_those_of_every_other_version() -> None:
    """Gateways and workers of one cluster may be of two versions while it is updated."""
    assert chain(root("model", "adapter", "salt"), 0, list(range(6)), 2) == PINNED


PINNED = [686113550512109805, 664348414446840579, 773692560597928647]


def test_tokens_that_change_places_make_another_block() -> None:
    tokens, size = list(range(0, 200_000, 1563)), 128
    seen = {chain(root("m"), 0, tokens, size)[0]}
    for one, other in itertools.combinations(range(size), 2):
        changed = list(tokens)
        changed[one], changed[other] = tokens[other], tokens[one]
        seen.add(chain(root("m"), 0, changed, size)[0])
    assert len(tokens) == size
    assert len(seen) == 1 + size * (size - 1) // 2


@pytest.mark.parametrize("size", [1, 16, 1000])
def test_coefficients_are_odd_and_all_different(size: int) -> None:
    weights = coefficients(size)
    assert len(set(weights)) == size
    assert all(weight & 1 for weight in weights)
