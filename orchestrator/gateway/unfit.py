"""Outputs that vLLM's front end can't take in: each costs its own request, and not the task that takes in them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def guard(processor: Any, unfit: Callable[[str, Exception], None]) -> None:
    """Has ``unfit`` told (request id, what it failed with) where ``processor.process_outputs`` would have raised.

    ``processor``: vLLM's OutputProcessor, which looks at one output after the other: the last one that it took before
    it raised is the one that it could not take.
    """
    process = processor.process_outputs

    def guarded(outputs: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        left, lost = iter(outputs), []
        while True:
            taken: list[Any] = []
            try:
                found = process(_remembered(left, taken), *args, **kwargs)
            except Exception as error:
                if not taken:
                    raise
                *whole, broken = taken
                lost += _ended_there(processor, whole)
                unfit(broken.request_id, error)
            else:
                found.reqs_to_abort.extend(lost)
                return found

    processor.process_outputs = guarded


def _ended_there(processor: Any, outputs: Iterable[Any]) -> list[str]:
    """Requests that the front end ended itself (a stop string), of which the engine has yet to be told."""
    states = processor.request_states
    return [each.request_id for each in outputs if not each.finished and each.request_id not in states]


def _remembered(outputs: Iterator[Any], taken: list[Any]) -> Iterator[Any]:
    for output in outputs:
        taken.append(output)
        yield output
