"""What nodes and configurations call a kind of GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from orchestrator.planning import catalogue
from orchestrator.telemetry import logs

log = logs.events("controller.kinds")

GPU = "segue.io/gpu"  # the label by which a node's owner says it
ACCELERATOR = "ray.io/accelerator-type"  # the label by which Ray does
_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@functools.cache
def kind_called(word: str) -> str:
    """The catalogue's name for it; the word itself where it has none.

    "A100" doesn't say with how much memory, so it is taken for the smaller: what fits that fits both.
    """
    known = catalogue.builtin()
    if word in known:
        return known.find(word).name
    several = [kind for kind in known if kind.name.casefold().startswith(f"{word.casefold()}-")]
    if not several:
        return word
    least = min(several, key=lambda kind: kind.memory_bytes).name
    others = ", ".join(kind.name for kind in several if kind.name != least)
    log.warning("gpu_of_several_kinds", said=word, taken_for=least, may_be=others, say_it_by=f"{GPU}=KIND")
    return least


def names_of(words: Iterable[str]) -> tuple[str, ...]:
    """Everything that a label may call one of these kinds."""
    known = catalogue.builtin()
    names: list[str] = []
    for word in words:
        kinds = [known.find(word)] if word in known else []
        names += [word, *(name for kind in kinds for name in (kind.name, *kind.aliases))]
    values = ("-".join(name.split()) for name in names)
    return tuple(dict.fromkeys(value for value in values if _LABEL_VALUE.fullmatch(value)))
