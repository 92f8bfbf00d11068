"""``segue plan``: what fits is cut and placed, what doesn't is refused with the numbers, and nothing is started."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.exits import Exit
from orchestrator.cli.main import main
from orchestrator.cli.run_folder import RunFolder, RunRecord
from tests.planning.models import LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M

POOL = "{replicas: 1, device: gpu}"
NODE = "{name: n0, gpu: H100-80GB, count: 8}"
LOAD = "{requests_per_second: 5, prompt_tokens: 1000, output_tokens: 200, prefix_hit: 0.5}"


class Planner:
    """Files in a folder, and what the command says of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def run(
        self, pools: str, *nodes: str, model: dict[str, Any] = LLAMA_3_8B, also: str = "", options: tuple[str, ...] = ()
    ) -> tuple[int, str, str]:
        (self._folder / "model").mkdir(exist_ok=True)
        (self._folder / "model" / "config.json").write_text(json.dumps(model))
        config, inventory = self._folder / "cluster.yaml", self._folder / "inventory.yaml"
        parts = f"name: llama, source: ./model, pools: {pools}{also}"
        config.write_text(f"cluster: {{name: c}}\nmodels:\n  - {{{parts}}}\n")
        inventory.write_text(f"nodes: [{', '.join(nodes)}]\n")
        where = ("--inventory", str(inventory)) if nodes else ()
        code = main(["plan", str(config), *where, *options])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def answer(self, *args: Any, **named: Any) -> tuple[int, dict[str, Any]]:
        code, out, _ = self.run(*args, **named, options=("--json",))
        return code, json.loads(out)


@pytest.fixture
def planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Planner:
    return Planner(tmp_path, capsys)


def test_what_is_left_open_is_chosen_for_the_load_and_placed(planner: Planner) -> None:
    pools = "{prefill: {replicas: auto, tensor_parallel: auto, device: gpu}, decode: {replicas: auto, device: gpu}}"
    goals = f", slo: {{ttft_ms: 500, itl_ms: 30}}, load: {LOAD}"
    code, answer = planner.answer(pools, NODE, also=goals)
    assert code == Exit.OK
    assert answer["fits"] is True
    (model,) = answer["models"]
    assert model["parameters"] == 8_030_261_248
    assert model["weight_bytes"] == 2 * 8_030_261_248
    assert model["kv_bytes_per_token"] == 131_072
    assert 0 < model["ttft_ms"] <= 500
    assert 0 < model["itl_ms"] <= 30
    assert model["usd_per_million_tokens"] > 0
    assert model["wh_per_million_tokens"] > 0
    taken = []
    for pool in model["pools"]:
        assert len(pool["placement"]) == pool["replicas"] >= 1
        size = pool["tensor_parallel"] * pool["pipeline_parallel"]
        for replica in pool["placement"]:
            assert sum(len(devices) for _, devices in replica) == size
            taken += [(node, device) for node, devices in replica for device in devices]
    assert len(taken) == len(set(taken)) <= 8


def test_a_person_sees_the_verdict_the_cut_the_cost_and_a_picture(planner: Planner) -> None:
    code, out, _ = planner.run("{serve: {replicas: 2, device: gpu, tensor_parallel: 2}}", NODE)
    assert code == Exit.OK
    assert out.startswith("It fits")
    assert "llama: 8.03 billion parameters, 16.1 GB of weights" in out
    assert "2 x (TP 2) H100-80GB" in out
    assert "A0 A0 A1 A1 ·  ·  ·  ·" in out
    assert "USD and" in out


def test_each_pool_of_a_large_cluster_has_a_mark_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(SMOLLM2_135M))
    pool = "{serve: {gpu: H100-80GB, share: 0.1}}"
    models = [f"  - {{name: model-{number}, source: ./model, pools: {pool}}}" for number in range(54)]
    config, inventory = tmp_path / "cluster.yaml", tmp_path / "inventory.yaml"
    config.write_text("\n".join(["cluster: {name: c}", "models:", *models]))
    inventory.write_text(f"nodes: [{NODE}]\n")
    assert main(["plan", str(config), "--inventory", str(inventory)]) == Exit.OK
    legend = re.findall(r"(\w+) model-\d+ serve", " ".join(capsys.readouterr().out.split()))
    assert [legend[0], legend[25], legend[26], legend[51], legend[52], legend[53]] == ["A", "Z", "a", "z", "AA", "AB"]
    assert len(set(legend)) == 54


def test_without_an_inventory_it_says_what_to_buy(planner: Planner) -> None:
    pool = "{serve: {replicas: 9, gpu: H100-80GB}}"
    code, answer = planner.answer(pool)
    assert code == Exit.OK
    assert answer["buy"] == [
        {"name": "buy-H100-80GB-0", "device": "H100-80GB", "count": 8},
        {"name": "buy-H100-80GB-1", "device": "H100-80GB", "count": 8},
    ]


@pytest.mark.parametrize(
    ("pools", "node", "model", "words"),
    [
        (f"{{serve: {POOL}}}", "{name: n0, gpu: A10G}", LLAMA_3_70B, ("weights need 141.1 GB", "A10G has")),
        ("{serve: {device: gpu, tensor_parallel: 7}}", NODE, LLAMA_3_70B, ("64", "TP=7")),
        (
            "{serve: {device: gpu, pipeline_parallel: 33}}",
            "{name: 'n[0-9]', gpu: H200, count: 8}",
            LLAMA_3_8B,
            ("32 layers",),
        ),
        ("{serve: {device: gpu, replicas: 9}}", NODE, LLAMA_3_8B, ("9", "8")),
    ],
    ids=["memory", "heads", "layers", "inventory"],
)
def test_what_cannot_work_is_refused_with_the_numbers(
    planner: Planner, pools: str, node: str, model: dict[str, Any], words: tuple[str, ...]
) -> None:
    code, out, _ = planner.run(pools, node, model=model)
    assert code == Exit.DOES_NOT_FIT
    assert out.startswith("It does not fit:")
    for word in words:
        assert word in out
    answer = planner.answer(pools, node, model=model)[1]
    assert answer["fits"] is False
    (refused,) = answer["models"]
    if not refused["pools"]:
        numbers = ("ttft_ms", "itl_ms", "usd_per_million_tokens", "wh_per_million_tokens")
        assert {name: refused[name] for name in numbers} == dict.fromkeys(numbers)


def test_an_objective_that_no_plan_meets_is_a_reason(planner: Planner) -> None:
    code, answer = planner.answer(f"{{serve: {POOL}}}", NODE, also=f", slo: {{itl_ms: 2}}, load: {LOAD}")
    assert code == Exit.DOES_NOT_FIT
    assert "2 ms" in " ".join(answer["reasons"])


def test_a_part_of_a_gpu_with_tensor_parallelism_is_a_wrong_configuration(planner: Planner) -> None:
    code, _, err = planner.run("{serve: {device: gpu, share: 0.5, tensor_parallel: 2}}", NODE)
    assert code == Exit.USAGE
    assert "share" in err


def test_a_device_nobody_knows_is_an_error_that_lists_the_known_ones(planner: Planner) -> None:
    code, _, err = planner.run(f"{{serve: {POOL}}}", "{name: n0, gpu: H1000}")
    assert code == Exit.USAGE
    assert "H100-80GB" in err


def test_a_controller_that_does_not_answer_is_told_with_what_else_can_be_done(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_HOME", str(tmp_path / "home"))
    planner.run(f"{{serve: {POOL}}}", NODE)
    folder = RunFolder.of("c")
    with folder.claim(), socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        controller = f"127.0.0.1:{nobody.getsockname()[1]}"
        folder.write(RunRecord("c", os.getpid(), "c.yaml", time.time(), controller=controller))
        code, _, err = planner.run(f"{{serve: {POOL}}}")
        folder.forget()
    assert code == Exit.NOT_READY
    assert f"{controller}: cluster c is up (process {os.getpid()}), but its controller does not answer" in err
    assert "--inventory" in err


def test_mock_engines_have_nothing_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mocks.yaml"
    config.write_text(
        "cluster: {name: mocks}\nmodels: [{name: m, source: 'tiny:llama', pools: {serve: {backend: mock}}}]\n"
    )
    assert main(["plan", str(config)]) == Exit.OK
    assert capsys.readouterr().out.startswith("There is nothing that has to fit")


def test_a_folder_with_a_broken_config_names_the_file(planner: Planner, tmp_path: Path) -> None:
    planner.run(f"{{serve: {POOL}}}", NODE)
    (tmp_path / "model" / "config.json").write_text("{")
    code = main(["plan", str(tmp_path / "cluster.yaml")])
    assert code != Exit.OK
