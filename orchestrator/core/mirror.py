"""What is in one engine's prefix cache, told in hashes that a gateway can make of a prompt (``blocks``).

An engine tells of its blocks by names of its own: digests that chain like ours, but over more than a gateway knows, and
of which only the blocks' own tokens are told. So each name is kept with the hash that it stands for; a block whose
parent has no name here can't be placed, is left out, and counted.

What is published is closed: of every block all blocks before it are published too. An engine evicts in any order; one
block evicted hides all that come after it, as no request can use those, and they come back if it is stored again while
they are still there. An engine may also hold one block twice, in two places, and tells of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from orchestrator.core.blocks import chain, root

Name = bytes | int
"""What an engine calls a block."""


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Full blocks of one sequence, one after the other, entered the cache.

    ``parent`` is the block before the first; None if the sequence begins there, and then ``adapter`` and ``salt`` say
    with whom else it can be shared. ``extras``: what each block is made of besides tokens (``blocks.extra_term``), 0
    for nothing; empty if none is of anything else.
    """

    names: Sequence[Name]
    parent: Name | None
    tokens: Sequence[int]
    adapter: str = ""
    salt: str = ""
    extras: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks left the cache."""

    names: Sequence[Name]


@dataclass(frozen=True, slots=True)
class Cleared:
    """The cache is empty, or what was in it is not known any more."""


CacheEvent = BlocksStored | BlocksRemoved | Cleared


@dataclass(frozen=True, slots=True)
class CacheNews:
    """What changed, in this order: cleared, removed, stored. ``stored`` has each block after the one before it."""

    cleared: bool = False
    removed: Sequence[int] = ()
    stored: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.cleared or self.removed or self.stored)


@dataclass(slots=True, eq=False)
class _Block:
    """A block by its engine's name. With no copies it is a place that its children hang on.

    Children are a linked list: most blocks have one, some have thousands, and any of them may go.
    """

    name: Name
    hash: int
    depth: int
    parent: _Block | None
    copies: int = 0
    published: bool = False
    child: _Block | None = None
    older: _Block | None = None
    newer: _Block | None = None

    def __post_init__(self) -> None:
        if self.parent is not None:
            self.older = self.parent.child
            if self.older is not None:
                self.older.newer = self
            self.parent.child = self

    def unhang(self) -> None:
        if self.older is not None:
            self.older.newer = self.newer
        if self.newer is not None:
            self.newer.older = self.older
        elif self.parent is not None:
            self.parent.child = self.older

    def children(self) -> Iterator[_Block]:
        child = self.child
        while child is not None:
            yield child
            child = child.older


class CacheMirror:
    """One engine's prefix cache.

    ``unplaced`` counts blocks that came without their parent, ``misshapen`` those whose tokens are not as many as this
    block size asks for: where either grows, less is published than there is.
    """

    def __init__(self, model: str, block_size: int) -> None:
        self._model = model
        self._block_size = block_size
        self._blocks: dict[Name, _Block] = {}
        self._published: dict[int, int] = {}  # hash -> names that stand for it; each after the one before it
        self._cleared = False
        self._before: dict[int, bool] = {}  # of each hash that these events touch: was it published before them
        self.unplaced = 0
        self.misshapen = 0

    def __len__(self) -> int:
        return len(self._published)

    def take(self, events: Iterable[CacheEvent]) -> CacheNews:
        """Takes the events in; returns what they come to, all in all."""
        self._cleared = False
        self._before.clear()
        for event in events:
            if isinstance(event, BlocksStored):
                self._stored(event)
            elif isinstance(event, BlocksRemoved):
                for name in event.names:
                    if block := self._blocks.get(name):
                        self._removed(block)
            else:
                self._clear()
        removed = [hash_ for hash_, was in self._before.items() if was and hash_ not in self._published]
        stored = [hash_ for hash_, was in self._before.items() if not was and hash_ in self._published]
        return CacheNews(self._cleared, removed, stored)

    def snapshot(self) -> list[int]:
        """All that is published, each block after the one before it."""
        return list(self._published)

    def _stored(self, event: BlocksStored) -> None:
        if len(event.names) * self._block_size != len(event.tokens):
            self.misshapen += len(event.names)
            return
        parent, before, depth = None, 0, 0
        if event.parent is None:
            before = root(self._model, event.adapter, event.salt)
        else:
            parent = self._blocks.get(event.parent)
            if parent is None:
                self.unplaced += len(event.names)
                return
            before, depth = parent.hash, parent.depth
        hashes = chain(before, depth, event.tokens, self._block_size, event.extras)
        for name, hash_ in zip(event.names, hashes, strict=True):
            depth += 1
            parent = self._enter(name, hash_, depth, parent)

    def _enter(self, name: Name, hash_: int, depth: int, parent: _Block | None) -> _Block:
        block = self._blocks.get(name)
        if block is None:
            block = self._blocks[name] = _Block(name, hash_, depth, parent)
        block.copies += 1
        if not block.published and (parent is None or parent.published):
            self._publish(block)
        return block

    def _removed(self, block: _Block) -> None:
        block.copies = max(0, block.copies - 1)
        if block.copies:
            return
        if block.published:
            self._hide(block)
        place: _Block | None = block
        while place is not None and not place.copies and place.child is None:
            del self._blocks[place.name]
            place.unhang()
            place = place.parent

    def _publish(self, block: _Block) -> None:
        """And all after it that are there."""
        waiting = [block]
        while waiting:
            block = waiting.pop()
            block.published = True
            self._before.setdefault(block.hash, block.hash in self._published)
            self._published[block.hash] = self._published.get(block.hash, 0) + 1
            waiting += [child for child in block.children() if child.copies]

    def _hide(self, block: _Block) -> None:
        """And all after it."""
        waiting = [block]
        while waiting:
            block = waiting.pop()
            block.published = False
            names = self._published[block.hash] - 1
            if names:
                self._published[block.hash] = names
            else:
                self._before.setdefault(block.hash, True)
                del self._published[block.hash]
            waiting += [child for child in block.children() if child.published]

    def _clear(self) -> None:
        self._blocks.clear()
        self._published.clear()
        self._before.clear()
        self._cleared = True


class Backlog:
    """What one listener has still to be told of a mirror: at first everything.

    It is the difference between what the listener knows and what is there, so however long the listener takes, it is
    no more than what an engine's cache holds, twice.
    """

    def __init__(self, mirror: CacheMirror) -> None:
        self._cleared = True
        self._missing = dict.fromkeys(mirror.snapshot())  # each after the one before it
        self._surplus: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(self._cleared or self._missing or self._surplus)

    def add(self, news: CacheNews) -> None:
        """The mirror's news, all of them, in order."""
        missing, surplus = self._missing, self._surplus
        if news.cleared:
            self._cleared = True
            missing.clear()
            surplus.clear()
        for block in news.removed:
            if block in missing:
                del missing[block]
            else:
                surplus[block] = None
        for block in news.stored:
            if block in surplus:
                del surplus[block]
            else:
                missing[block] = None

    def take(self, at_most: int) -> CacheNews:
        """The next part, with at most so many stored blocks; after each part what the listener knows is closed."""
        stored = list(islice(self._missing, at_most))
        news = CacheNews(self._cleared, list(self._surplus), stored)
        self._cleared = False
        self._surplus.clear()
        if len(stored) == len(self._missing):
            self._missing.clear()
        else:
            for block in stored:
                del self._missing[block]
        return news
