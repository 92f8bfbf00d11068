"""Outputs that vLLM's front end can't take in: each costs its own request, and not the task that takes in them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import length_hint
from typing import Any


def guard(processor: Any, unfit: Callable[[str, Exception], None]) -> None:
    """Has ``unfit`` told (request id, what it failed with) where ``processor.process_outputs`` would have raised.

    ``processor``: vLLM's OutputProcessor, which goes through a list of outputs once: the last one that it took before
    it raised is the one that it could not take.
    """
    process = processor.process_outputs

    def guarded(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        left = iter(outputs)  # how far it came is known without a step of our own for each
        lost: list[str] = []
        begin = 0
        while True:
            try:
                found = process(left, *args, **kwargs)
            except Exception as error:
                end = len(outputs) - length_hint(left)
                if end == begin:
                    raise
                broken = outputs[end - 1]
                lost += _ended_there(processor, outputs[begin : end - 1])
                begin = end
                unfit(broken.request_id, error)
            else:
                if lost:
                    found.reqs_to_abort.extend(lost)
                return found

    processor.process_outputs = guarded


def _ended_there(processor: Any, outputs: Iterable[Any]) -> list[str]:
    """Requests that the front end ended itself (a stop string), of which the engine has yet to be told."""
    states = processor.request_states
    return [each.request_id for each in outputs if not each.finished and each.request_id not in states]
