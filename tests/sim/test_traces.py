"""Both formats of traces are read to the letter, bad lines are told by number, made-up loads keep to their shape."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.core.errors import ConfigError
from orchestrator.sim.generate import Shape
from orchestrator.sim.offer import Offer, best_hits
from orchestrator.sim.traces import Limits, offers

NO_LIMITS = Limits()


def read(file: Path, block_size: int = 512, limits: Limits = NO_LIMITS) -> list[Offer]:
    return offers(str(file), block_size, limits, 0, 1)


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    lines = [
        {"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [5, 6, 7]},
        {"timestamp": 1000, "input_length": 1024, "output_length": 9, "hash_ids": [5, 9]},
        {"timestamp": 2000, "input_length": 600, "output_length": 1, "hash_ids": [8, 6]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return file


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
        "2023-11-17 00:00:00.0000000,110,27\n"
    )
    return file


def test_mooncake_times_and_lengths_in_order_of_time_from_the_first_one(mooncake: Path) -> None:
    found = read(mooncake)
    assert [(offer.at, offer.prompt_tokens, offer.output_tokens) for offer in found] == [
        (0.0, 1024, 9),
        (1.0, 600, 1),
        (2.0, 1100, 7),
    ]


@pytest.mark.parametrize("block_size", [16, 128, 512])
def test_blocks_of_a_trace_become_blocks_of_the_model(mooncake: Path, block_size: int) -> None:
    by_prompt = {offer.prompt_tokens: list(offer.blocks) for offer in read(mooncake, block_size)}
    parts = 512 // block_size
    assert {prompt: len(blocks) for prompt, blocks in by_prompt.items()} == {
        prompt: prompt // block_size for prompt in (1024, 600, 1100)
    }
    assert by_prompt[1024][:parts] == by_prompt[1100][:parts]  # both begin with 5
    assert not set(by_prompt[1024][parts:]) & set(by_prompt[1100][parts:])
    # The same id after another block is another prefix.
    assert not set(by_prompt[600]) & set(by_prompt[1100])
    for blocks in by_prompt.values():
        assert len(set(blocks)) == len(blocks)


def test_a_block_size_that_does_not_divide_the_traces_is_refused(mooncake: Path) -> None:
    with pytest.raises(ConfigError, match="the model's are 48"):
        read(mooncake, 48)


def test_azure_times_to_the_microsecond_over_midnight(azure: Path) -> None:
    found = read(azure, 16)
    assert [offer.at for offer in found] == [0.0, pytest.approx(0.052), pytest.approx(20576.02004, abs=1e-6)]
    assert [(offer.prompt_tokens, offer.output_tokens) for offer in found] == [(4808, 10), (3180, 8), (110, 27)]
    blocks = [block for offer in found for block in offer.blocks]
    assert len(set(blocks)) == len(blocks) == 4808 // 16 + 3180 // 16 + 110 // 16


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"timestamp": "1", "input_length": 1, "output_length": 1, "hash_ids": [1]}', "timestamp is '1'"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [1]}', "timestamp is -1"),
        ('{"timestamp": 1, "output_length": 1, "hash_ids": [1]}', "input_length is None"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 0, "hash_ids": [1]}', "output_length is 0"),
        ('{"timestamp": 1, "input_length": 1, "output_length": true, "hash_ids": [1]}', "output_length is True"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}', "hash_ids"),
        ('{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}', "too few"),
    ],
)
def test_a_bad_line_of_json_is_told_by_its_number(mooncake: Path, line: str, words: str) -> None:
    mooncake.write_text(mooncake.read_text() + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=words) as caught:
        read(mooncake)
    assert caught.value.where == f"{mooncake}:5"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2023-11-16 18:17:03.9799600,4808", "2 fields"),
        ("yesterday,1,1", "TIMESTAMP is 'yesterday'"),
        ("2023-11-16 18:17:03.9799600,0,1", "ContextTokens is '0'"),
        ("2023-11-16 18:17:03.9799600,10,-1", "GeneratedTokens is '-1'"),
    ],
)
def test_a_bad_line_of_csv_is_told_by_its_number(azure: Path, line: str, words: str) -> None:
    azure.write_text(azure.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=words) as caught:
        read(azure)
    assert caught.value.where == f"{azure}:5"


@pytest.mark.parametrize("text", ["", "hello\n", "a,b,c\n1,2,3\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(ConfigError, match="the trace"):
        read(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read(tmp_path / "none")


def test_pace_and_length_can_be_changed(mooncake: Path) -> None:
    assert [offer.at for offer in read(mooncake, limits=Limits(speed=4.0))] == [0.0, 0.25, 0.5]
    assert [offer.at for offer in read(mooncake, limits=Limits(rate=10.0))] == [0.0, 0.1, 0.2]
    assert [offer.at for offer in read(mooncake, limits=Limits(requests=2))] == [0.0, 1.0]
    assert [offer.at for offer in read(mooncake, limits=Limits(speed=2.0, duration=0.75))] == [0.0, 0.5]


# ---- made-up loads


def made(shape: str, seed: int = 0, **limits: float) -> list[Offer]:
    return offers(f"generate:{shape}", 16, Limits(**limits), seed, 3)


def test_a_poisson_load_has_its_rate_lengths_and_tenants() -> None:
    found = made("poisson,rate=50,prompt=300,output=40,tenants=4", duration=100)
    assert len(found) == pytest.approx(5000, rel=0.1)
    assert sum(offer.prompt_tokens for offer in found) / len(found) == pytest.approx(320, rel=0.1)
    assert sum(offer.output_tokens for offer in found) / len(found) == pytest.approx(40, rel=0.1)
    assert sorted(Counter(offer.tenant for offer in found)) == ["tenant-0", "tenant-1", "tenant-2", "tenant-3"]
    assert all(len(offer.blocks) == offer.prompt_tokens // 16 for offer in found)


def test_the_rate_is_two_a_second_for_each_replica_unless_it_is_said() -> None:
    assert len(made("poisson", duration=200)) == pytest.approx(1200, rel=0.15)
    assert len(made("poisson,rate=1", duration=200, rate=6.0)) == pytest.approx(1200, rel=0.15)


def test_bursts_keep_the_mean_and_come_in_their_part_of_the_period() -> None:
    found = made("bursts,rate=20,period=10,on=0.2,factor=8", duration=400)
    assert len(found) == pytest.approx(8000, rel=0.1)
    bursting = sum(offer.at % 10 < 2 for offer in found)
    assert bursting / len(found) == pytest.approx(8 * 0.2 / (8 * 0.2 + 0.8), rel=0.1)


def test_fronts_are_shared_by_zipfs_law() -> None:
    found = made("poisson,rate=50,prefixes=20,prefix=64,zipf=1,shared=0.5", duration=200)
    fronts = Counter(offer.affinity for offer in found)
    assert fronts.pop("") / len(found) == pytest.approx(0.5, abs=0.03)
    assert fronts["front-0"] / fronts["front-1"] == pytest.approx(2.0, rel=0.3)
    shared = [offer for offer in found if offer.affinity == "front-0"]
    assert len({tuple(offer.blocks[:4]) for offer in shared}) == 1
    assert len({offer.blocks[4] for offer in shared if len(offer.blocks) > 4}) == sum(
        len(offer.blocks) > 4 for offer in shared
    )


def test_a_seed_makes_the_same_load_again() -> None:
    assert made("bursts", seed=3, requests=100) == made("bursts", seed=3, requests=100)
    assert made("bursts", seed=3, requests=100) != made("bursts", seed=4, requests=100)


@pytest.mark.parametrize(
    "text", ["", "steady", "poisson,rat=1", "poisson,rate=x", "poisson,prefixes=0", "poisson,shared=2", "poisson,rate"]
)
def test_a_shape_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Shape.parse(text)


def test_the_bound_counts_what_one_cache_without_bounds_would_save() -> None:
    found = [Offer(0.0, 7, 1, [1, 2, 3]), Offer(1.0, 8, 1, [1, 2, 4, 5]), Offer(2.0, 6, 1, [1, 2, 3])]
    # The second finds two blocks of two tokens; of the third's three the last one has to be computed for its logits.
    assert best_hits(found, 2) == 4 + 4
