"""One attempt at one half of a request, as engines and gateways of the simulation hand it around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.core.values import mypyc_attr
from orchestrator.sim.offer import placed

if TYPE_CHECKING:
    from orchestrator.sim.cache import Run
    from orchestrator.sim.flight import Flight
    from orchestrator.sim.network import Link

# Hashes of blocks with generated tokens: nobody else's, no prompt has them, and a dict places them elsewhere.
_GENERATED = (1 << 59) + (1 << 16)
_TOGETHER = 32  # blocks of a half whose hashes are in a row
_FURTHER = 1 << 40  # from there to its next 32; no run has so many halves that they would meet


@mypyc_attr(free_list_len=1)
class Half:
    """What a wire id stands for.

    ``prompt`` and ``output`` are tokens to compute and to generate; an engine that pushes a half back moves what it has
    generated from one to the other. ``collect`` is the prefill half whose KV is to be fetched. ``base`` is the place of
    its first token in the request's output: what other halves had sent before, which ``prompt`` ends with. ``total``:
    tokens that the request gets in all, if this half is its last.
    """

    __slots__ = (
        "base",
        "blocks",
        "cached",
        "collect",
        "emitted",
        "ended",
        "first_step",
        "flight",
        "gateway",
        "last_step",
        "left",
        "moved",
        "number",
        "offers",
        "output",
        "place",
        "private",
        "prompt",
        "pushed_at",
        "run",
        "sealed",
        "started",
        "total",
        "wire_id",
        "worker",
    )

    def __init__(
        self,
        wire_id: str,
        link: Link,
        flight: Flight,
        number: int,
        prompt: int,
        output: int,
        blocks: Sequence[int],
        *,
        offers: bool = False,
        collect: Half | None = None,
        base: int = 0,
        total: int = 0,
    ) -> None:
        # Natively in this order in memory: what its end needs is together.
        self.last_step = 0  # in which it ends; to be relied on only while it decodes
        self.place = -1  # of its next block boundary among the engine's steps; -1 while it does not decode
        self.offers = offers  # its KV waits to be collected when it has ended
        self.gateway = link.gateway
        self.flight = flight
        self.wire_id = wire_id
        self.number = number
        self.prompt = prompt
        self.output = output
        self.base = base
        self.total = total
        self.emitted = 0  # tokens generated before it was pushed back, aborted or lost
        self.ended = False  # its last token is out
        self.run: Run | None = None
        self.sealed = 0  # blocks that it holds in runs
        self.private = 0
        self.worker = link.worker
        self.blocks = blocks
        self.collect = collect
        self.cached = 0  # prompt tokens that the engine's own cache saved
        self.moved = 0  # prompt tokens whose KV was fetched
        self.left = 0  # prompt tokens still to compute
        self.started = False  # its first token is out
        self.pushed_at: float | None = None
        self.first_step = 0

    def prompt_goes_on(self, block_size: int) -> None:
        """Its prompt ends with output, whose blocks no other prompt has."""
        self.sealed = len(self.blocks)
        self.blocks = [*self.blocks, *self.generated_blocks(self.prompt // block_size)]
        self.sealed = 0

    def generated_blocks(self, full: int) -> list[int]:
        """Hashes of its full blocks beyond those of its prompt's hashes."""
        base = _GENERATED + placed(self.number * _TOGETHER)
        if full <= _TOGETHER:
            return [base + place for place in range(self.sealed, full)]
        return [base + place // _TOGETHER * _FURTHER + place % _TOGETHER for place in range(self.sealed, full)]
