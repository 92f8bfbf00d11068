"""KV blocks of a mock engine, counted as vLLM counts them: a cached block that nobody uses is free, and is evicted
oldest first when its room is needed."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from orchestrator.core.mirror import BlocksRemoved, BlocksStored, CacheEvent


@dataclass(frozen=True, slots=True)
class Kinship:
    """Only sequences of one adapter and one salt share blocks."""

    adapter: str = ""
    salt: str = ""

    @property
    def root(self) -> bytes:
        """What the hash of a first block is made of besides its tokens."""
        return f"{self.adapter}\0{self.salt}".encode() if self.adapter or self.salt else b""


ANYONE = Kinship()


@dataclass(slots=True)
class Holding:
    """One sequence's blocks: ``shared`` are full and known by their hash, ``private`` are not."""

    kinship: Kinship = ANYONE
    shared: list[bytes] = field(default_factory=list)
    private: int = 0

    @property
    def blocks(self) -> int:
        return len(self.shared) + self.private


class BlockPool:
    """All KV blocks of one engine. ``take_events`` yields what entered or left the prefix cache since the last call."""

    def __init__(self, total: int, block_size: int, caching: bool = True) -> None:
        self.total = total
        self.block_size = block_size
        self._caching = caching
        self._users: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._private = 0
        self._events: list[CacheEvent] = []

    @property
    def used(self) -> int:
        return len(self._users) + self._private

    @property
    def free(self) -> int:
        return self.total - self.used

    def hashes(self, tokens: Sequence[int], kinship: Kinship = ANYONE) -> Iterator[bytes]:
        """Hashes of the full blocks of a sequence, each over all tokens up to its end."""
        parent = kinship.root
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            parent = self.hash(parent, tokens[end - self.block_size : end])
            yield parent

    @staticmethod
    def hash(parent: bytes, tokens: Sequence[int]) -> bytes:
        """The hash of a block after the one with hash ``parent`` (for the first: its kinship's root)."""
        return blake2b(parent + array("I", tokens).tobytes(), digest_size=16).digest()

    def cached(self, tokens: Sequence[int], kinship: Kinship = ANYONE) -> list[bytes]:
        """Hashes of the leading blocks of a sequence that the cache has."""
        found: list[bytes] = []
        if self._caching:
            for digest in self.hashes(tokens, kinship):
                if digest not in self._users and digest not in self._idle:
                    break
                found.append(digest)
        return found

    def hold(self, cached: Sequence[bytes], fresh: int, kinship: Kinship = ANYONE) -> Holding | None:
        """Blocks for a new sequence: cached ones and ``fresh`` empty ones; None if there is no room."""
        from_idle = sum(1 for digest in cached if digest in self._idle)
        if fresh + from_idle > self.free:
            return None
        for digest in cached:
            self._idle.pop(digest, None)
            self._users[digest] = self._users.get(digest, 0) + 1
        holding = Holding(kinship, list(cached))
        grown = self.grow(holding, fresh)
        assert grown  # noqa: S101  (room was counted above)
        return holding

    def grow(self, holding: Holding, blocks: int) -> bool:
        """Adds empty blocks to a sequence; False, and nothing is done, if there is no room."""
        if blocks > self.free:
            return False
        holding.private += blocks
        self._private += blocks
        while self.used + len(self._idle) > self.total:
            evicted, _ = self._idle.popitem(last=False)
            self._events.append(BlocksRemoved([evicted]))
        return True

    def seal(self, holding: Holding, tokens: Sequence[int]) -> None:
        """Enters the next full block of a sequence, whose tokens are given, into the cache."""
        parent = holding.shared[-1] if holding.shared else None
        kinship = holding.kinship
        digest = self.hash(kinship.root if parent is None else parent, tokens)
        if not self._caching:
            return
        holding.private -= 1
        self._private -= 1
        holding.shared.append(digest)
        if digest not in self._users and digest not in self._idle:
            self._events.append(BlocksStored([digest], parent, tokens, kinship.adapter, kinship.salt))
        self._idle.pop(digest, None)
        self._users[digest] = self._users.get(digest, 0) + 1

    def release(self, holding: Holding) -> None:
        """Gives a sequence's blocks back; safe to call twice."""
        for digest in reversed(holding.shared):  # so that the tail is evicted first
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]
                self._idle[digest] = None
        self._private -= holding.private
        holding.shared, holding.private = [], 0

    def take_events(self) -> list[CacheEvent]:
        events, self._events = self._events, []
        return events
