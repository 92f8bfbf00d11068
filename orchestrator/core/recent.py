"""Where a worker tells no events: a guess from what was routed there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from orchestrator.core.block_table import BlockTable


class Recent:
    """What a worker that tells no events is taken to have: what was routed there last, ``capacity`` blocks of it."""

    def __init__(self, table: BlockTable, slot: int, capacity: int) -> None:
        self._table = table
        self._slot = slot
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the oldest first

    def routed(self, blocks: Sequence[int]) -> None:
        """Backwards, so that of a prompt its end is forgotten first."""
        kept, known = list(blocks[: self._capacity]), self._blocks
        self._table.add([block for block in kept if block not in known], self._slot)
        for block in reversed(kept):
            known[block] = None
            known.move_to_end(block)
        self._table.discard([known.popitem(last=False)[0] for _ in range(len(known) - self._capacity)], self._slot)

    def forget(self) -> None:
        """All of it; the table is swept by others."""
        self._blocks.clear()

    def check(self) -> None:
        """Raises AssertionError where the table does not say the same; for tests."""
        assert all(self._table.has(block, self._slot) for block in self._blocks), self._slot  # noqa: S101
        assert len(self._blocks) <= self._capacity, self._slot  # noqa: S101
