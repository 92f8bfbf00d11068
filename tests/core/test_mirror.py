"""The mirror tells just what an engine's prefix cache can serve, whatever the engine stores, evicts or holds twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator.core.blocks import chain, extra_term, root
from orchestrator.core.mirror import BlocksRemoved, BlocksStored, CacheEvent, CacheMirror, CacheNews, Cleared

Path = tuple[str, ...]
SIZE = 2
ROOTS = {"plain": ("", ""), "salted": ("", "s"), "poet": ("poet", ""), "poet, moved": ("poet", "")}
PATHS = st.tuples(st.sampled_from(sorted(ROOTS)), st.lists(st.sampled_from("ab"), min_size=1, max_size=4)).map(
    lambda drawn: (drawn[0], *drawn[1])
)


def tokens(path: Path) -> list[int]:
    return [ord(letter) + place for letter in path[1:] for place in range(SIZE)]


def hashes(path: Path) -> list[int]:
    adapter, salt = ROOTS[path[0]]
    return chain(root("m", adapter, salt), 0, tokens(path), SIZE)


def name(path: Path) -> bytes:
    return repr(path).encode()


def stored(path: Path, first: int) -> BlocksStored:
    """Blocks of a path from the ``first`` (counted from 1) on, as an engine tells of them."""
    adapter, salt = ROOTS[path[0]]
    names = [name(path[: end + 1]) for end in range(first, len(path))]
    parent = name(path[:first]) if first > 1 else None
    own = {"adapter": adapter, "salt": salt} if parent is None else {}
    return BlocksStored(names, parent, tokens(path)[(first - 1) * SIZE :], **own)


class MirrorMachine(RuleBasedStateMachine):
    """An engine that does anything. ``copies``: of each block that the mirror could place."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = CacheMirror("m", SIZE)
        self.copies: Counter[Path] = Counter()
        self.events: list[CacheEvent] = []
        self.told: set[int] = set()
        self.unplaced = 0

    @rule(path=PATHS, first=st.integers(1, 4))
    def store(self, path: Path, first: int) -> None:
        first = min(first, len(path) - 1)
        self.events.append(stored(path, first))
        parent = path[:first]
        if first > 1 and not any(self.copies[other] and other[:first] == parent for other in self.copies):
            self.unplaced += len(path) - first
            return
        for end in range(first, len(path)):
            self.copies[path[: end + 1]] += 1

    @rule(data=st.data(), copies=st.integers(1, 2))
    def remove(self, data: st.DataObject, copies: int) -> None:
        held = sorted(path for path, count in self.copies.items() if count)
        path = data.draw(st.sampled_from(held) if held else PATHS)
        self.events.append(BlocksRemoved([name(path)] * copies))
        self.copies[path] = max(0, self.copies[path] - copies)

    @rule(path=PATHS)
    def remove_what_is_not_there(self, path: Path) -> None:
        self.events.append(BlocksRemoved([name((*path, "z"))]))

    @rule()
    def clear(self) -> None:
        self.events.append(Cleared())
        self.copies.clear()

    @rule()
    def tell(self) -> None:
        """Whatever came since the last time, at once."""
        news = self.mirror.take(self.events)
        self.events = []
        if news.cleared:
            self.told.clear()
        assert not set(news.removed) - self.told
        assert not set(news.stored) & (self.told - set(news.removed)), "what is there is not told again"
        self.told -= set(news.removed)
        whole = {block for path in self.servable() for block in hashes(path)[:-1]}
        for block in news.stored:
            before = self.before(block)
            assert before is None or before in self.told, "a block comes after the one before it"
            self.told.add(block)
        assert whole <= self.told
        assert self.told == {hashes(path)[-1] for path in self.servable()}
        assert self.mirror.unplaced == self.unplaced

    def servable(self) -> list[Path]:
        """Blocks that are there with all before them."""
        return [path for path in self.copies if all(self.copies[path[:end]] for end in range(2, len(path) + 1))]

    def before(self, block: int) -> int | None:
        for path in self.copies:
            chained = hashes(path)
            if chained[-1] == block:
                return chained[-2] if len(chained) > 1 else None
        raise AssertionError("told of a block that nobody stored")

    @invariant()
    def a_snapshot_is_what_was_told(self) -> None:
        if not self.events:
            snapshot = self.mirror.snapshot()
            assert set(snapshot) == self.told
            assert len(snapshot) == len(self.told) == len(self.mirror)
            seen: set[int] = set()
            for block in snapshot:
                before = self.before(block)
                assert before is None or before in seen
                seen.add(block)


TestMirror = MirrorMachine.TestCase
TestMirror.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

LONG = ("plain", "a", "b", "a", "b")


def test_an_evicted_block_hides_what_comes_after_it_until_it_is_back() -> None:
    mirror = CacheMirror("m", SIZE)
    assert mirror.take([stored(LONG, 1)]).stored == hashes(LONG)
    news = mirror.take([BlocksRemoved([name(LONG[:3])])])
    assert set(news.removed) == set(hashes(LONG)[1:])
    assert mirror.snapshot() == hashes(LONG)[:1]
    again = mirror.take([stored(LONG[:3], 2)])
    assert again == CacheNews(removed=[], stored=hashes(LONG)[1:])


def test_a_block_held_twice_is_there_until_both_are_gone() -> None:
    mirror = CacheMirror("m", SIZE)
    mirror.take([stored(LONG, 1), stored(LONG, 1)])
    everything = [name(LONG[:end]) for end in range(2, 6)]
    assert not mirror.take([BlocksRemoved(everything)])
    assert set(mirror.take([BlocksRemoved(everything)]).removed) == set(hashes(LONG))
    assert len(mirror) == 0


def test_what_comes_and_goes_between_two_looks_is_not_told() -> None:
    mirror = CacheMirror("m", SIZE)
    assert not mirror.take([stored(LONG, 1), BlocksRemoved([name(LONG[:2])])])


def test_after_a_gap_only_what_is_stored_from_its_root_is_told() -> None:
    mirror = CacheMirror("m", SIZE)
    mirror.take([stored(LONG, 1)])
    news = mirror.take([Cleared(), stored(LONG, 3), stored(("plain", "b"), 1)])
    assert news == CacheNews(cleared=True, removed=[], stored=hashes(("plain", "b")))
    assert mirror.unplaced == 2


def test_pictures_set_blocks_apart() -> None:
    mirror, term = CacheMirror("m", SIZE), extra_term([("picture", 1)])
    plain = BlocksStored([b"1", b"2"], None, [1, 2, 3, 4])
    pictured = BlocksStored([b"1", b"3"], None, [1, 2, 3, 4], extras=[0, term])
    mirror.take([plain])
    assert mirror.take([pictured]).stored == chain(root("m"), 0, [1, 2, 3, 4], SIZE, [0, term])[1:]


def test_blocks_of_another_size_are_left_out_and_counted() -> None:
    mirror = CacheMirror("m", SIZE)
    assert not mirror.take([BlocksStored([b"x", b"y"], None, [1, 2, 3])])
    assert mirror.misshapen == 2


def test_a_cache_that_was_emptied_block_by_block_leaves_nothing_behind() -> None:
    mirror = CacheMirror("m", SIZE)
    for _ in range(3):
        mirror.take([stored(LONG, 1), stored(("plain", "a", "a"), 1)])
        for path in (LONG[:2], LONG[:2], LONG[:3], ("plain", "a", "a"), LONG[:5], LONG[:4]):
            mirror.take([BlocksRemoved([name(path)])])
        assert not mirror._blocks
        assert len(mirror) == 0
