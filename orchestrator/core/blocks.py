"""A name for what a KV block holds, the same at a gateway, which knows a prompt, and at a worker, whose engine knows
blocks.

A block's hash stands for its tokens and all tokens before them:

    H_k = H_(k-1) + STEP^k * fold(START + sum over i of token_i * FACTOR^(n-1-i) + what else it is made of)   mod 2^60

with n tokens in a block, fold(x) = x xor x / 2^32 on 64 bits, k counted from 1, and H_0 made of the model, the adapter
and the salt. Within a block that is a multiplication and an addition a token (``prompt_blocks``), and neither sum needs
an order, so that a few vector operations do it for all of a prompt too (``gateway.hashing``); 60 bits are what Python
holds in an integer of 32 bytes. This is no cryptography: whoever looks for two prompts with one hash will find them,
and gains a misjudged cache. Which KV an engine reuses is decided by the engine's own hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b
from operator import mul

BITS = 60
MASK = (1 << BITS) - 1
WORD = (1 << 64) - 1

_GAMMA = 0x9E3779B97F4A7C15
_SEED = 0x5E60E0B10C4A5111


def splitmix(place: int) -> int:
    """The number at a place of the splitmix64 sequence (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, 2014)."""
    z = (_SEED + place * _GAMMA) & WORD
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & WORD
    return z ^ z >> 31


# 5 mod 8: their powers repeat as late as can be, after 2^58 and 2^62.
STEP = splitmix(0) & ~7 | 5
FACTOR = splitmix(2) & ~7 | 5
START = splitmix(1)  # so that a block of zeros is something too


@cache
def coefficients(block_size: int) -> tuple[int, ...]:
    """What the token at each place of a block is multiplied by, 64 bits.

    They are odd, so any single token that differs shows, and far apart, so two that change places do too.
    """
    return tuple(pow(FACTOR, block_size - 1 - place, 1 << 64) for place in range(block_size))


def root(model: str, adapter: str = "", salt: str = "") -> int:
    """H_0. Prompts of another model, adapter or salt share no hash."""
    digest = blake2b(digest_size=8, person=b"segue root")
    for part in (model, adapter, salt):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return int.from_bytes(digest.digest(), "big") & MASK


def extra_term(items: Iterable[tuple[str | bytes, int]]) -> int:
    """What a block is made of besides its tokens, as 64 bits: (identity, place in the block) each. 0 for nothing."""
    digest = blake2b(digest_size=8, person=b"segue extra")
    nothing = True
    for identity, place in items:
        encoded = identity.encode() if isinstance(identity, str) else identity
        digest.update(len(encoded).to_bytes(4, "big") + encoded + place.to_bytes(8, "big", signed=True))
        nothing = False
    return 0 if nothing else int.from_bytes(digest.digest(), "big")


def chain(before: int, depth: int, tokens: Sequence[int], block_size: int, extras: Sequence[int] = ()) -> list[int]:
    """Hashes of the full blocks that ``tokens`` make.

    Args:
        before: the hash of the block before them, or the root.
        depth: how many blocks there are before them.
        extras: of each block, as ``extra_term`` makes it; empty if none has any.
    """
    weights = coefficients(block_size)
    power = pow(STEP, depth, 1 << BITS)
    hashes: list[int] = []
    for number, start in enumerate(range(0, len(tokens) - block_size + 1, block_size)):
        x = START + sum(map(mul, tokens[start : start + block_size], weights))
        if extras:
            x += extras[number]
        x &= WORD
        power = power * STEP & MASK
        before = (before + (x ^ x >> 32) * power) & MASK
        hashes.append(before)
    return hashes
