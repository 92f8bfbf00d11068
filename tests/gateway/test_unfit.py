"""Outputs that the front end can't take in, from workers that are broken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.output_processor import OutputProcessor

from orchestrator.gateway.unfit import guard
from tests.gateway.support import Stack


class Processor:
    """Takes one output after the other, as vLLM's does; ``bad`` ones break it, ``stopped`` ones end there."""

    def __init__(self) -> None:
        self.request_states = dict.fromkeys(("a", "b", "c", "stopped"))
        self.seen: list[str] = []

    def process_outputs(self, outputs: Any) -> Any:
        for output in outputs:
            if output.request_id.startswith("bad"):
                raise KeyError("xylophone")
            self.seen.append(output.request_id)
            if output.request_id == "stopped":
                del self.request_states["stopped"]
        return SimpleNamespace(reqs_to_abort=["by itself"])


def test_each_costs_its_own_request_and_no_other() -> None:
    processor, unfit = Processor(), []
    guard(processor, lambda request_id, error: unfit.append((request_id, type(error))))
    names = ["a", "stopped", "bad 1", "b", "bad 2", "bad 3", "c"]
    found = processor.process_outputs([SimpleNamespace(request_id=name, finished=False) for name in names])
    assert processor.seen == ["a", "stopped", "b", "c"]
    assert unfit == [("bad 1", KeyError), ("bad 2", KeyError), ("bad 3", KeyError)]
    assert set(found.reqs_to_abort) == {"by itself", "stopped"}, "the engine has to hear of what ended here"


async def test_a_front_end_outlives_them(stack: Stack) -> None:
    front = stack.gateway.front("together")
    body = {"model": "together", "prompt": "a", "max_tokens": 300, "stream": True}
    async with stack.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        (request_id,) = front.llm.output_processor.request_states
        output = SimpleNamespace(request_id=request_id, finished=False)  # nothing of what vLLM reads of it
        front.core.push([output])  # type: ignore[list-item]
        said = [line async for line in lines]
    assert "event: error" in said or any('"error"' in line for line in said)
    assert not front.llm.errored
    again = await stack.http.post("/v1/completions", json={**body, "stream": False, "max_tokens": 1})
    assert again.status_code == 200


def test_what_no_output_is_to_blame_for_is_raised() -> None:
    class Broken(Processor):
        def process_outputs(self, outputs: Any) -> Any:
            super().process_outputs(outputs)
            raise RuntimeError("of the processor itself")

    processor, unfit = Broken(), []
    guard(processor, lambda request_id, error: unfit.append(request_id))
    with pytest.raises(RuntimeError, match="of the processor itself"):
        processor.process_outputs([])
    assert not unfit


async def test_vllm_hands_on_a_list_and_goes_through_it_once(stack: Stack) -> None:
    """By which it is known how far it came."""
    processor = stack.gateway.front("together").llm.output_processor
    times: list[int] = []

    class Watched(list[Any]):
        def __iter__(self) -> Any:
            times[-1] += 1
            return super().__iter__()

    def process_outputs(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        assert type(outputs) is list
        times.append(0)
        return OutputProcessor.process_outputs(processor, Watched(outputs), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "process_outputs", process_outputs)
        body = {"model": "together", "prompt": "a", "max_tokens": 5, "n": 3}
        assert (await stack.http.post("/v1/completions", json=body)).status_code == 200
    assert times
    assert set(times) == {1}
