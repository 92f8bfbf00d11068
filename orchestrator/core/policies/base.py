"""What a policy is: it may narrow the pool and it scores candidates in [0, 1], all in one call; the router picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.core.candidates import bounded
from orchestrator.core.fleet import Pool, WorkerView
from orchestrator.core.matches import Matches
from orchestrator.core.session import Session
from orchestrator.core.spec import Role
from orchestrator.core.values import mypyc_attr

if TYPE_CHECKING:
    from random import Random


@mypyc_attr(free_list_len=1)
@dataclass(slots=True)
class Ask:
    """One half of a request that looks for a worker."""

    session: Session
    role: Role  # of the pool
    ahead: float | None  # seconds until a prefill worker has its prompt ready; None if it is computed where it goes
    matches: Matches
    rng: Random
    now: float


def number(default: int | float, least: float, most: float, about: str) -> Any:
    """A parameter of a policy, as a field of its options; whole numbers only if the default is an ``int``."""
    return field(default=default, metadata={"least": least, "most": most, "about": about})


@dataclass(frozen=True, slots=True)
class Options:
    """A policy's parameters. This one has none."""


class Policy:
    """One instance serves one pool of one model. State it keeps (whose turn it is) is its own."""

    Options: ClassVar[type[Options]] = Options
    about: ClassVar[str]

    def __init__(self, options: Any) -> None:
        self.options = options

    def narrow(self, pool: Pool, ask: Ask) -> Sequence[WorkerView]:
        """The candidates: all of a small pool, a few of a large one. Silent and full ones are left out later."""
        return bounded(pool, ask.matches, ask.rng)

    def score(self, views: Sequence[WorkerView], cached: Sequence[int], ask: Ask) -> list[float]:
        """A number in [0, 1] for each view, 1 is best; ``cached`` are the prompt tokens that each has in its cache."""
        raise NotImplementedError

    def chosen(self, view: WorkerView) -> None:
        """It is this one."""


def parameters(kind: type[Policy]) -> Mapping[str, Field[Any]]:
    """The fields that declare a policy's parameters, by name."""
    return {entry.name: entry for entry in fields(kind.Options)}


def fits(entry: Field[Any], value: object) -> bool:
    """Whether a parameter may have this value."""
    kinds = int if isinstance(entry.default, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return bool(entry.metadata["least"] <= value <= entry.metadata["most"])


def allowed(entry: Field[Any]) -> str:
    """A parameter's values in words."""
    kind = "a whole number" if isinstance(entry.default, int) else "a number"
    return f"{kind} from {entry.metadata['least']:g} to {entry.metadata['most']:g}"
