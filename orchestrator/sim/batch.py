"""The sequences that a modelled engine runs, the steps in which they end, and the KV blocks that they hold.

A decoding sequence needs a new block each ``block_size`` tokens: ``_boundaries`` counts decoding sequences by the step
(modulo the block size) in which they do, so blocks for any number of steps are counted at once.
"""

from __future__ import annotations

from typing import Final

from orchestrator.sim.cache import BlockCache
from orchestrator.sim.half import Half
from orchestrator.sim.settings import EngineSettings

# Most engines have nobody in most of their queues, and what all share is near the processor. Nothing is put into these.
NOBODY: Final[list[Half]] = []
NONE: Final[dict[Half, None]] = {}
NEVER: Final = 1 << 60


class Batch:
    """An engine's queue, its running sequences, and those that have ended but whose KV is not collected yet."""

    __slots__ = (
        "_block_size",
        "_boundaries",
        "_finishing",
        "_next_end",
        "cache",
        "decoding",
        "fetching",
        "pinned",
        "prompts",
        "running",
        "settings",
        "step",
        "waiting",
    )

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.cache = BlockCache(settings.facts.kv_blocks_total, caching=settings.caching)
        self.step = 0  # steps that have ended
        self.waiting = NOBODY
        self.running: dict[Half, None] = {}  # oldest first: prompts that are computed, and sequences that decode
        self.prompts = NOBODY  # the running ones that wait for the step in which they begin to decode
        self.decoding = 0
        self.fetching = NONE  # those that have a seat and wait for their KV
        self.pinned = NONE
        self._block_size = settings.facts.block_size
        self._boundaries = [0] * self._block_size
        self._finishing: list[Half] = []  # those that decode, by the step in which they end, the next one last
        self._next_end = NEVER  # its last step

    # ---- in

    def admit(self) -> None:
        """Gives seats and blocks to those that wait, in order of arrival, until there are none left."""
        cache, size, waiting = self.cache, self._block_size, self.waiting
        seats = self.settings.facts.max_num_seqs - len(self.running) - len(self.fetching)
        while waiting and seats > 0:
            half = waiting[0]
            match = cache.match(half.blocks, (half.prompt - 1) // size)  # the last token is always computed
            fresh = -(-half.prompt // size) - match.blocks
            if fresh + match.idle > cache.total - cache.private - cache.shared:
                return
            del waiting[0]
            seats -= 1
            half.run = cache.hold(match, fresh)
            half.sealed, half.private = match.blocks, fresh
            known = match.blocks * size
            half.left = half.prompt - known - 1  # one token a step is what ``step_seconds`` stands for
            if not half.started:
                half.cached = known
            if half.collect is not None and not half.started:
                self.fetching = self.fetching or {}
                self.fetching[half] = None
                half.worker.fetch(half)
            else:
                self.schedule(half)
        if not waiting:
            self.waiting = NOBODY

    def schedule(self, half: Half) -> None:
        """A half with blocks begins to run."""
        self.running[half] = None
        self.prompts = self.prompts or []
        self.prompts.append(half)

    def begin_decoding(self, ended: list[Half]) -> list[Half]:
        """Halves whose prompts are computed get their next token; returns those that had none before.

        Appends those for which it is the last one to ``ended``.
        """
        firsts: list[Half] = []
        prompts, self.prompts = self.prompts, NOBODY
        for half in prompts:
            if half.left:
                self.prompts = self.prompts or []
                self.prompts.append(half)
                continue
            if not half.started:
                half.started = True
                firsts.append(half)
            self._seal(half)
            if half.output == 1:
                self._finish(half)
                ended.append(half)
            else:
                self._join(half)
        return firsts

    def _seal(self, half: Half) -> None:
        count = len(half.blocks) - half.sealed
        if count > 0 and self.cache.caching:
            half.run = self.cache.seal(half.run, half.blocks, half.sealed)
            half.sealed += count
            half.private -= count

    def _join(self, half: Half) -> None:
        size, step = self._block_size, self.step
        half.first_step = step
        half.place = (step - half.prompt) % size
        self._boundaries[half.place] += 1
        self.decoding += 1
        half.last_step = step + half.output - 1
        self._line_up(half)
        if half.place == step % size:
            self._grow(1)

    def _line_up(self, half: Half) -> None:
        """Among those that finish: it is the newest, so of those that end in its last step it comes last."""
        finishing, last_step = self._finishing, half.last_step
        low, high = 0, len(finishing)
        while low < high:
            middle = (low + high) >> 1
            if finishing[middle].last_step > last_step:
                low = middle + 1
            else:
                high = middle
        if low == len(finishing):
            self._next_end = last_step
        finishing.insert(low, half)

    def _look_ahead(self) -> None:
        """What finished next is none of them any more."""
        self._next_end = self._finishing[-1].last_step if self._finishing else NEVER

    # ---- steps

    def _grow(self, blocks: int) -> None:
        cache = self.cache
        cache.private += blocks
        if cache.private + cache.shared + cache.idle_blocks > cache.total:
            cache.make_room()

    def growth(self, steps: int) -> int:
        """Blocks that the decoding sequences need anew in so many steps."""
        size = self._block_size
        rest = steps % size
        growth = steps // size * self.decoding
        if rest:
            boundaries, begin = self._boundaries, self.step + 1
            for step in range(begin, begin + rest):
                growth += boundaries[step % size]
        return growth

    def steps_to_change(self) -> int:
        """Steps until a decoding sequence finishes, or until the blocks no longer suffice."""
        steps = self._next_end - self.step
        free = self.cache.free
        if (steps // self._block_size + 1) * self.decoding > free:
            for fewer in range(1, steps):
                if self.growth(fewer) > free:
                    return fewer
        return steps

    def advance(self, steps: int) -> list[Half]:
        """So many steps have ended; returns the halves that ended with the last of them."""
        if not self.decoding:
            self.step += steps
            return []
        growth = self.growth(steps) if steps > 1 else self._boundaries[(self.step + 1) % self._block_size]
        self.step = step = self.step + steps
        ended: list[Half] = []
        while self._next_end <= step:
            half = self._finishing.pop()
            self._look_ahead()
            ended.append(half)
            if half.place == step % self._block_size:
                growth -= 1  # no block for a token that nothing follows
        if growth:
            self._grow(growth)
        for half in ended:
            self._finish(half)
        return ended

    def generated(self, half: Half) -> int:
        """Tokens that a half has generated since it was admitted."""
        return self.step - half.first_step + 1 if half.place >= 0 else 0

    # ---- out

    def _finish(self, half: Half) -> None:
        half.ended = True
        if half.offers:
            del self.running[half]
            self.pinned = self.pinned or {}
            self.pinned[half] = None
        else:
            self.leave(half, half.output)

    def leave(self, half: Half, generated: int) -> None:
        """A running half's seat and blocks are free; what it generated stays cached."""
        size = self._block_size
        del self.running[half]
        if half.place < 0:
            if half in self.prompts:
                self.prompts.remove(half)
        else:
            self._boundaries[half.place] -= 1
            self.decoding -= 1
            half.place = -1
            if generated < half.output:  # else it stands there no more
                self._finishing.remove(half)
                self._look_ahead()
            known = half.prompt + generated - 1  # tokens whose KV is there: all but the last
            half.private = -(-(known if generated == half.output else known + 1) // size) - half.sealed
            full = known // size - half.sealed
            if full > 0 and self.cache.caching:
                half.run = self.cache.extend(half.run, half.generated_blocks(half.sealed + full))
                half.private -= full
        self.cache.release(half.run, half.private)
        half.run, half.private = None, 0

    def unpin(self, half: Half) -> bool:
        """An ended prefill's KV was collected, or nobody will; False if that was said before."""
        if half not in self.pinned:
            return False
        del self.pinned[half]
        self.cache.release(half.run, half.private)
        return True

    def push_back(self) -> list[Half]:
        """Where blocks don't suffice, the newest sequences give theirs up and wait first of all; returns them."""
        pushed = []
        while self.cache.free < 0 and self.running:
            half = next(reversed(self.running))
            generated = self.generated(half)
            blocks = half.blocks
            if generated:
                full = (half.prompt + generated - 1) // self._block_size
                blocks = [*blocks[: half.sealed], *half.generated_blocks(full)]
            self.leave(half, generated)
            half.blocks = blocks
            half.prompt += generated
            half.output -= generated
            half.emitted += generated
            half.sealed = 0
            self.waiting = [half, *self.waiting]
            pushed.append(half)
        self.cache.make_room()
        return pushed
