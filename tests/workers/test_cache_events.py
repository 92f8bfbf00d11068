"""What vLLM tells of its prefix cache comes to what it can serve: its own accounts of blocks, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from orchestrator.core.blocks import chain, root
from orchestrator.core.mirror import Backlog, BlocksRemoved, BlocksStored, CacheMirror, Cleared
from orchestrator.gateway.hashing import blocks_of
from tests.workers.support import make_request
from workers import wire

SIZE, BLOCKS = 4, 14
KIN = [(None, None), (None, "salt"), ("poet", None), ("poet", "salt"), ("salt", "salt")]
PROMPTS = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.sampled_from(KIN))


def payload(*events: Any) -> bytes:
    return msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=list(events)))


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share what is cached or compute it once more, go, and evict each other."""

    def __init__(self) -> None:
        super().__init__()
        init_none_hash(sha256)
        self.pool = BlockPool(BLOCKS, True, SIZE, enable_kv_cache_events=True)
        self.reader, self.mirror = wire.CacheEvents(), CacheMirror("m", SIZE)
        self.backlog = Backlog(self.mirror)
        self.told: set[int] = set()
        self.live: list[list[Any]] = []
        self.seen: dict[tuple[Any, ...], Request] = {}

    @rule(prompt=PROMPTS, reuse=st.booleans())
    def arrive(self, prompt: tuple[list[int], tuple[str | None, str | None]], reuse: bool) -> None:
        heads, (adapter, salt) = prompt
        tokens = [head * 10 + place for head in heads for place in range(SIZE)] + [99]
        request = Request(
            *(str(len(self.seen)), tokens, SamplingParams(max_tokens=1), None),
            lora_request=LoRARequest(adapter, 1, "path") if adapter else None,
            cache_salt=salt,
            block_hasher=get_request_block_hasher(SIZE, sha256),
        )
        self.seen[tuple(heads), adapter, salt] = request
        cached = self.cached(request) if reuse else []
        self.pool.touch(cached)
        fresh = len(heads) - len(cached)
        if fresh > self.pool.get_num_free_blocks():
            self.pool.free_blocks(cached)
            return
        blocks = [*cached, *self.pool.get_new_blocks(fresh)]
        self.pool.cache_full_blocks(request, blocks, len(cached), len(heads), SIZE, 0)
        self.live.append(blocks)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), backwards=st.booleans())
    def leave(self, data: st.DataObject, backwards: bool) -> None:
        blocks = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.free_blocks(reversed(blocks) if backwards else blocks)

    @rule()
    def reset(self) -> None:
        self.pool.reset_prefix_cache()

    @rule(at_most=st.integers(1, 3))
    def a_slow_listener_reads(self, at_most: int) -> None:
        news = self.backlog.take(at_most)
        if news.cleared:
            self.told.clear()
        assert not news.removed or self.told.issuperset(news.removed)
        self.told.difference_update(news.removed)
        assert not self.told & set(news.stored)
        self.told.update(news.stored)
        for request in self.seen.values():
            held = [block in self.told for block in blocks_of(request, "m", SIZE)]
            assert held == sorted(held, reverse=True), "what it knows is closed"

    @invariant()
    def what_is_published_is_what_would_be_found(self) -> None:
        self.backlog.add(self.mirror.take(self.reader.read(payload(*self.pool.take_events()))))
        published = set(self.mirror.snapshot())
        for request in self.seen.values():
            mine = blocks_of(request, "m", SIZE)
            assert [block in published for block in mine].count(True) == len(self.cached(request))
        assert self.mirror.unplaced == self.mirror.misshapen == 0

    def teardown(self) -> None:
        while self.backlog:
            self.a_slow_listener_reads(2)
        assert self.told == set(self.mirror.snapshot())

    def cached(self, request: Request) -> list[Any]:
        found = []
        for digest in request.block_hashes:
            block = self.pool.get_cached_block(digest, [0])
            if block is None:
                break
            found += block
        return found


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def stored(name: bytes, group: int, kind: str | None, **fields: Any) -> BlockStored:
    given: dict[str, Any] = {"parent_block_hash": None, "lora_id": None, "lora_name": None, "medium": "GPU", **fields}
    return BlockStored(
        [name], token_ids=[1, 2, 3, 4], block_size=SIZE, group_idx=group, kv_cache_spec_kind=kind, **given
    )


ONE = [BlocksStored([b"x"], None, [1, 2, 3, 4])]


def test_blocks_elsewhere_are_no_part_of_it() -> None:
    reader = wire.CacheEvents()
    elsewhere = [stored(b"x", 0, None, medium="CPU"), stored(b"x", 0, None, locality="REMOTE")]
    assert reader.read(payload(*elsewhere, BlockRemoved([b"x"], "STORAGE"))) == []
    assert reader.read(payload(stored(b"x", 0, None, medium=None))) == ONE
    assert reader.read(payload(BlockRemoved([b"x"], "GPU"))) == [BlocksRemoved([b"x"])]
    assert reader.read(payload(AllBlocksCleared())) == [Cleared()]


def test_layers_that_attend_to_everything_stand_for_all() -> None:
    reader = wire.CacheEvents()
    assert reader.read(payload(stored(b"x", 0, "sliding_window"))) == ONE, "until better is heard of"
    found = reader.read(payload(stored(b"y", 0, "sliding_window"), stored(b"x", 2, "full_attention")))
    assert found[1:] == [Cleared(), *ONE]
    assert reader.read(payload(stored(b"z", 1, "full_attention"), stored(b"z", 0, "sliding_window"))) == []
    assert reader.read(payload(BlockRemoved([b"x"], "GPU", 0), BlockRemoved([b"x"], "GPU", 2))) == [
        BlocksRemoved([b"x"])
    ]


@pytest.mark.parametrize("offset", [-3, 0, 2])
def test_a_picture_s_blocks_are_those_that_a_gateway_expects(offset: int) -> None:
    """The engine tells of a picture by its identity and its place, and lists as msgpack has them."""
    event = stored(b"x", 0, None, extra_keys=[("poet", ("picture", offset), "salt")], lora_name="poet")
    mirror = CacheMirror("m", SIZE)
    told = mirror.take(wire.CacheEvents().read(payload(event))).stored
    place = SimpleNamespace(offset=offset, length=50)
    request = make_request("r", [1, 2, 3, 4])
    request.mm_features = [SimpleNamespace(identifier="picture", mm_position=place)]  # type: ignore[list-item]
    request.lora_request, request.cache_salt = LoRARequest("poet", 1, "path"), "salt"
    assert told == list(blocks_of(request, "m", SIZE))
    assert told != chain(root("m", "poet", "salt"), 0, [1, 2, 3, 4], SIZE)


def test_nobody_has_cached_blocks_told_again() -> None:
    request = make_request("r", [1], extra_args={"kv_cache_report_mode": "full", "other": 1})
    wire.tell_once(request)
    assert request.sampling_params is not None
    assert request.sampling_params.extra_args == {"other": 1}
