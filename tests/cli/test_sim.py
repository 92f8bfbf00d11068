"""``segue sim``: tables for people, one object for programs, a chart in one file; wrong options end with exit 2."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.exits import Exit
from orchestrator.cli.main import main

CONFIG = """
cluster: {name: local}
models:
  - name: mock
    source: tiny:llama
    engine: {block_size: 16, kv_blocks: 512}
    pools:
      prefill: {replicas: 1, backend: mock}
      decode: {replicas: 2, backend: mock}
"""
LOAD = ("--trace", "generate:poisson,rate=20,output=20", "--requests", "60")


@pytest.fixture
def file(tmp_path: Path) -> str:
    file = tmp_path / "cluster.yaml"
    file.write_text(CONFIG)
    return str(file)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["sim", *arguments, "--json"]) == Exit.OK
    return json.loads(capsys.readouterr().out)


def test_the_object_for_programs_has_its_keys(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, file, *LOAD)
    assert found["requests"] == 60
    assert found["outcomes"] == {"finished": 60, "rejected": 0, "failed": 0, "cancelled": 0}
    assert found["goodput"] == 1.0
    for times in (found["ttft_ms"], found["itl_ms"]):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert 0 < found["prefix_hit_ratio"] <= found["prefix_hit_bound"] < 1
    assert found["busy_max_over_mean"] >= 1
    assert found["sim_seconds"] > 1
    assert found["wall_seconds"] > 0
    assert re.fullmatch("[0-9a-f]{32}", found["trace_hash"])
    assert {role: pool["replicas"] for role, pool in found["pools"].items()} == {"prefill": 1, "decode": 2}


def test_same_seed_same_run_and_another_seed_another(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = [answer(capsys, file, *LOAD, "--seed", seed)["trace_hash"] for seed in ("3", "3", "4")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_goodput_counts_rejects_and_slow_ones_as_failures(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    long = ("--trace", "generate:poisson,rate=20,prompt=6000,prompt_cv=1,output=20", "--requests", "100")
    found = answer(capsys, file, *long, "--slo-ttft-ms", "400")
    assert found["outcomes"]["rejected"] > 0  # longer than the model takes
    assert found["goodput"] < found["outcomes"]["finished"] / 100
    assert answer(capsys, file, *LOAD, "--slo-itl-ms", "9")["goodput"] < 0.1  # a step takes 10


@pytest.mark.parametrize(
    ("text", "pools"),
    [("3", {"prefill": 1, "decode": 2}), ("9", {"prefill": 3, "decode": 6}), ("decode=5", {"prefill": 1, "decode": 5})],
)
def test_replicas_of_all_pools_or_of_each(
    file: str, capsys: pytest.CaptureFixture[str], text: str, pools: dict[str, int]
) -> None:
    found = answer(capsys, file, *LOAD, "--replicas", text)
    assert {role: pool["replicas"] for role, pool in found["pools"].items()} == pools


def test_tables_for_people(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", file, *LOAD, "--faults", "leave:0.5"]) == Exit.OK
    out = capsys.readouterr().out
    for words in ("time to first token", "between tokens", "goodput", "prefix hits", "busy, decode", "cancelled"):
        assert words in out


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href")]


@pytest.mark.parametrize("requests", ["1", "60"])
def test_the_plot_is_one_file_with_five_charts(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], requests: str
) -> None:
    plot = tmp_path / "plot.html"
    load = (*LOAD[:2], "--requests", requests)
    assert main(["sim", file, *load, "--plot", str(plot)]) == Exit.OK
    text = plot.read_text()
    page = _Tags()
    page.feed(text)
    assert page.tags.count("h2") == 5
    assert page.tags.count("svg") >= (5 if requests == "60" else 3)
    assert not page.links
    assert "script" not in page.tags
    assert "nan" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replicas", "1"), "too few"),
        (("--replicas", "serve=2"), "--replicas"),
        (("--policy", "best"), "--policy: found the policy 'best'"),
        (("--model", "other"), "--model"),
        (("--faults", "flood"), "--faults flood"),
        (("--trace", "none.jsonl"), "none.jsonl"),
        (("--plot", "no/such/folder/plot.html"), "plot"),
    ],
)
def test_what_cannot_be_is_refused(
    file: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert main(["sim", file, *LOAD, *arguments]) == Exit.USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("--gateways", "0"), ("--rate", "-1"), ("--speed", "nan"), ("--noise", "1"), ("--delay-ms", "-1"), ()]
)
def test_numbers_out_of_range_are_refused(
    file: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sim", file, *(LOAD if arguments else ()), *arguments])
    assert caught.value.code == Exit.USAGE
