"""How much of a prompt is on its way to a worker, found without looking at each of its blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.in_flight import MOST, InFlight

# A prompt's blocks by its turns: two prompts share as many blocks as leading turns.
PROMPT = st.lists(st.booleans(), min_size=1, max_size=40)


def blocks(turns: list[bool]) -> list[int]:
    number = 1
    return [number := 2 * number + turn for turn in turns]


def shared(one: list[int], other: list[int]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=False))


@given(st.lists(st.tuples(st.integers(0, 5), PROMPT), max_size=MOST), PROMPT, st.integers(0, 12))
def test_lengths_are_exact_where_they_count(sent: list[tuple[int, list[bool]]], asked: list[bool], than: int) -> None:
    in_flight, prompts = InFlight(), [(slot, blocks(turns)) for slot, turns in sent]
    handles = [in_flight.add(slot, prompt) for slot, prompt in prompts]
    expected: dict[int, int] = {}
    for slot, prompt in prompts:
        length = shared(prompt, blocks(asked))
        if length > max(than, expected.get(slot, 0)):
            expected[slot] = length
    assert in_flight.longer(blocks(asked), than) == expected
    in_flight.check()
    for handle in handles:
        assert handle is not None
        in_flight.remove(handle)
        in_flight.check()
    assert not in_flight.longer(blocks(asked), 0)
    assert len(in_flight) == 0


def test_a_retry_to_the_same_worker_counts_twice() -> None:
    in_flight, prompt = InFlight(), [1, 2, 3]
    sent = in_flight.add(0, prompt)
    assert sent is not None
    assert in_flight.add(0, prompt) is sent
    in_flight.remove(sent)
    assert in_flight.longer(prompt, 0) == {0: 3}
    in_flight.remove(sent)
    in_flight.remove(sent)
    in_flight.check()
    assert in_flight.longer(prompt, 0) == {}


def test_a_worker_that_leaves_takes_its_prompts_with_it() -> None:
    in_flight, prompt = InFlight(), [1, 2, 3]
    sent = in_flight.add(0, prompt)
    in_flight.add(1, prompt)
    in_flight.leave(0)
    assert in_flight.longer(prompt, 0) == {1: 3}
    in_flight.add(0, prompt)  # to another that has its slot now
    assert sent is not None
    in_flight.remove(sent)
    assert in_flight.longer(prompt, 0) == {0: 3, 1: 3}
    in_flight.check()


def test_a_hot_prompt_costs_a_few_looks() -> None:
    in_flight = InFlight()
    prompts = [[1, 2, 3, 4] for _ in range(1000)]
    for slot, prompt in enumerate(prompts):
        in_flight.add(slot, prompt)
    assert 0 < len(in_flight.longer([1, 2, 3, 4], 0)) <= 3 * MOST


def test_behind_a_head_that_all_prompts_share_the_newest_is_found() -> None:
    in_flight, head = InFlight(), list(range(100))
    for slot in range(10):
        for number in range(20):
            in_flight.add(slot, [*head, 1000 * slot + number, 7])
    assert in_flight.longer([*head, 9019, 7, 8], 100) == {9: 102}
