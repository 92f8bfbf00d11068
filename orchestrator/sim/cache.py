"""KV blocks of a modelled engine: which are used, which hold a prefix that nobody uses, and which of those go first.

Theory of operation
===================
Blocks that were always used together are one *run*, so the cost of a request is in runs and not in blocks. A run knows
its parent, the run before it in the prompt; a request holds a chain of runs by its deepest one. Hashes are chained, so
one equal hash means that all before it are equal too: a run is found by its first hash, and compared by its last.

A request that shares only the front of a run splits it: the new run is the front, the old object stays the rear, so
whoever held it by its deepest run still does. What nobody uses is *idle*, oldest first; a chain becomes idle from its
deepest run upwards, and a run is evicted from its rear, so the tail of a prompt always goes before its front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.core.values import mypyc_attr

_STALE = 16  # turns that count no more and are not worth a clean-up
_NO_BLOCKS: Final[list[int]] = []  # all caches' own while nothing changes: nothing is put into it


@mypyc_attr(free_list_len=1)
class Run:
    """Consecutive blocks of one prompt. ``users`` requests hold them.

    ``turns``: how often it stands in the queue of idle runs; only its last turn counts, and only while nobody uses it.
    """

    __slots__ = ("blocks", "parent", "turns", "users")

    def __init__(self, blocks: list[int], parent: Run | None, users: int) -> None:
        self.blocks = blocks
        self.parent = parent
        self.users = users
        self.turns = 0


@mypyc_attr(free_list_len=1)
class Match:
    """The cached front of a prompt: ``run`` is its last whole run, ``partial`` one after it that is shared in part."""

    __slots__ = ("blocks", "idle", "partial", "run", "shared")

    def __init__(self, run: Run | None, blocks: int, idle: int, partial: Run | None = None, shared: int = 0) -> None:
        self.run = run
        self.blocks = blocks  # in all, those of ``partial`` that are shared among them
        self.idle = idle  # of them, how many nobody uses
        self.partial = partial
        self.shared = shared


class BlockCache:
    """All KV blocks of one engine, ``total`` of them.

    ``private`` blocks belong to one request and are in no run yet. ``stored`` and ``removed`` collect what has entered
    and left the prefix cache since ``take_changes``.
    """

    __slots__ = (
        "_idle",
        "_oldest",
        "_runs",
        "caching",
        "idle_blocks",
        "private",
        "removed",
        "shared",
        "stored",
        "total",
    )

    def __init__(self, total: int, *, caching: bool = True) -> None:
        self.total = total
        self.caching = caching
        self.private = 0
        self.shared = 0  # in runs that are used
        self.idle_blocks = 0
        self._runs: dict[int, Run] = {}  # by first hash
        self._idle: list[Run] = []  # oldest first, with turns that count no more
        self._oldest = 0  # its place there: those before it are done with
        self.stored = _NO_BLOCKS
        self.removed = _NO_BLOCKS

    @property
    def used(self) -> int:
        return self.private + self.shared

    @property
    def free(self) -> int:
        return self.total - self.private - self.shared

    def match(self, blocks: Sequence[int], limit: int) -> Match:
        """What the cache has of the first ``limit`` blocks; changes nothing."""
        at = idle = 0
        deepest: Run | None = None
        while at < limit:
            run = self._runs.get(blocks[at])
            if run is None:
                break
            own = run.blocks
            end = at + len(own)
            if end > limit or own[-1] != blocks[end - 1]:
                shared = _common(own, blocks, at, min(end, limit) - at)
                return Match(deepest, at + shared, idle + (0 if run.users else shared), run, shared)
            deepest, at = run, end
            if not run.users:
                idle += len(own)
        return Match(deepest, at, idle)

    def hold(self, match: Match, fresh: int) -> Run | None:
        """Takes matched blocks and ``fresh`` private ones, for which there must be room; returns the deepest run."""
        run = match.run
        if match.partial is not None:
            run = self._split(match.partial, match.shared)
        above = run
        while above is not None:
            if not above.users:
                self._wake(above)
            above.users += 1
            above = above.parent
        self.private += fresh
        if self.private + self.shared + self.idle_blocks > self.total:
            self.make_room()
        return run

    def seal(self, run: Run | None, blocks: Sequence[int], start: int) -> Run | None:
        """A request's private blocks from index ``start`` on are full and become cached; ``blocks`` are all its hashes.

        Returns its deepest run now.
        """
        count = len(blocks) - start
        if count <= 0 or not self.caching:
            return run
        self.private -= count
        match = self.match_below(blocks, start)
        while match is not None:
            if not match.users:
                self._wake(match)
            match.users += 1
            run, start = match, start + len(match.blocks)
            match = self.match_below(blocks, start)
        if start < len(blocks):
            new = list(blocks[start:])
            run = self._runs[new[0]] = Run(new, run, 1)
            self.shared += len(new)
            self.stored = self.stored + new
        return run

    def extend(self, run: Run | None, blocks: list[int]) -> Run:
        """A request's private blocks become cached under ``run``; nobody else has their like."""
        count = len(blocks)
        self.private -= count
        self.shared += count
        self.stored = self.stored + blocks
        run = self._runs[blocks[0]] = Run(blocks, run, 1)
        return run

    def match_below(self, blocks: Sequence[int], start: int) -> Run | None:
        """The run that begins with block ``start``, split so that all of it is shared."""
        run = self._runs.get(blocks[start]) if start < len(blocks) else None
        if run is None:
            return None
        most = min(len(run.blocks), len(blocks) - start)
        shared = _common(run.blocks, blocks, start, most)
        return run if shared == len(run.blocks) else self._split(run, shared)

    def release(self, run: Run | None, private: int) -> None:
        """Gives a request's blocks back."""
        self.private -= private
        while run is not None:
            run.users -= 1
            if not run.users:
                count = len(run.blocks)
                self.shared -= count
                self.idle_blocks += count
                run.turns += 1
                self._idle.append(run)
            run = run.parent
        if len(self._idle) > 2 * len(self._runs) + _STALE:
            self._tidy()

    def make_room(self) -> None:
        """Evicts what nobody uses, as far as the used blocks need its place."""
        over = self.private + self.shared + self.idle_blocks - self.total
        removed: list[int] = []
        while over > 0 and self.idle_blocks:
            run = self._idle[self._oldest]
            own = run.blocks
            if run.users or run.turns > 1:
                self._oldest += 1
                run.turns -= 1
                continue
            if len(own) <= over:
                self._oldest += 1
                del self._runs[own[0]]
                gone = own
            else:
                gone = own[-over:]
                del own[-over:]
            removed += gone
            self.idle_blocks -= len(gone)
            over -= len(gone)
        if removed:
            self.removed = self.removed + removed
        if self._oldest > _STALE:
            del self._idle[: self._oldest]
            self._oldest = 0

    def take_changes(self) -> tuple[list[int], list[int]]:
        """(removed, stored) since the last call, as they have to be told in that order."""
        removed, stored = self.removed, self.stored
        self.removed = self.stored = _NO_BLOCKS
        if removed and stored and not set(removed).isdisjoint(stored):
            held = set(self.contents())
            removed = [block for block in removed if block not in held]
            stored = [block for block in stored if block in held]
        return removed, stored

    def contents(self) -> list[int]:
        """Every cached block."""
        return [block for run in self._runs.values() for block in run.blocks]

    def check(self) -> None:
        """Raises AssertionError where the books don't balance; for tests."""
        for run in self._idle[self._oldest :]:
            run.turns -= 1
        shared = idle = unused = 0
        for first, run in self._runs.items():
            assert run.blocks[0] == first  # noqa: S101
            assert not run.turns  # noqa: S101
            if run.users:
                shared += len(run.blocks)
            else:
                idle += len(run.blocks)
                unused += 1
            parent = run.parent
            assert parent is None or (parent.blocks[0] in self._runs and parent.users >= run.users)  # noqa: S101
        for run in self._idle[self._oldest :]:
            unused -= not (run.users or run.turns)
            run.turns += 1
        assert not unused  # noqa: S101
        assert (self.shared, self.idle_blocks) == (shared, idle)  # noqa: S101
        assert self.private >= 0  # noqa: S101
        assert self.used + self.idle_blocks <= self.total  # noqa: S101

    def _tidy(self) -> None:
        """Forgets turns that count no more."""
        queue, self._idle = self._idle[self._oldest :], []
        self._oldest = 0
        for run in queue:
            if run.users or run.turns > 1:
                run.turns -= 1
            else:
                self._idle.append(run)

    def _wake(self, run: Run) -> None:
        self.idle_blocks -= len(run.blocks)
        self.shared += len(run.blocks)

    def _split(self, run: Run, front: int) -> Run:
        """Makes the first ``front`` blocks of a run one of their own, which the caller takes at once; returns it."""
        head = Run(run.blocks[:front], run.parent, run.users)
        run.blocks = run.blocks[front:]
        run.parent = head
        self._runs[head.blocks[0]] = head
        self._runs[run.blocks[0]] = run
        return head


def _common(own: Sequence[int], blocks: Sequence[int], start: int, most: int) -> int:
    """How many of the first ``most`` blocks of ``own`` are ``blocks`` from ``start`` on; at least one is."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if own[middle - 1] == blocks[start + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
