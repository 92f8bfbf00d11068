"""What a run raises where a promise does not hold."""

from __future__ import annotations


class PromiseBroken(RuntimeError):  # noqa: N818
    """A defect in the brain or in the simulation, never weather."""
