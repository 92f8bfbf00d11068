"""``segue up`` plans before it starts anything: what is open is filled in, what can't be run is refused in numbers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cli import run_folder
from orchestrator.cli.exits import Exit
from tests.cli.fakes import FakeCluster, status
from tests.cli.test_up import Owner, end
from tests.planning.models import LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M, Config

CONFIG = """
cluster: {{name: test}}
gateway: {{http: "127.0.0.1:0", grpc: "127.0.0.1:0"}}
controller: {{listen: "127.0.0.1:0"}}
models:
  - {{name: m, source: ./model, pools: {pools}}}
"""


def session(leader: int) -> list[int]:
    """The processes of a session, whoever their parents are now."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            found += [pid] * (os.getsid(pid) == leader)
    return found


@pytest.fixture
def up(tmp_path: Path, cluster: FakeCluster) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(model: Config | dict[str, Any], pools: str) -> Owner:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(json.dumps(model))
        path = tmp_path / "test.yaml"
        path.write_text(CONFIG.format(pools=pools))
        cluster.tell(status(grpc_address=cluster.address))
        owners.append(Owner(path, cluster.address, tmp_path / "output"))
        return owners[-1]

    yield start
    end(owners)


@pytest.mark.parametrize(
    ("gpus", "model", "pools", "reason"),
    [
        ("", SMOLLM2_135M, "{serve: {device: gpu}}", "m: the serve pool needs a GPU, there is nothing"),
        ("", SMOLLM2_135M, "{serve: {tensor_parallel: 2}}", "9 attention heads"),
        ("", SMOLLM2_135M, "{serve: {pipeline_parallel: 31}}", "30 layers"),
        ("", LLAMA_3_8B, "{serve: {replicas: 1}}", "GB"),
        ("", SMOLLM2_135M, "{serve: {replicas: 8}}", "here: 8 replicas need "),
        ("L4 x 1", LLAMA_3_70B, "{serve: {device: gpu}}", "weights"),
        ("H100-80GB x 8", LLAMA_3_70B, "{serve: {device: gpu, tensor_parallel: 7}}", "64 attention heads"),
        ("H100-80GB x 8", LLAMA_3_70B, "{serve: {device: gpu, pipeline_parallel: 81}}", "80 layers"),
        ("H100-80GB x 8", LLAMA_3_70B, "{serve: {gpu: H100-80GB, tensor_parallel: 4, replicas: 3}}", "free are 8"),
    ],
)
def test_what_cant_be_run_is_refused_with_the_numbers_and_nothing_is_left(
    up: Callable[..., Owner], gpus: str, model: Config, pools: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_TEST_GPUS", gpus)
    owner = up(model, pools)
    assert owner.exit_code() == Exit.DOES_NOT_FIT
    assert "✗ plan: it does not fit" in owner.shown
    assert reason in owner.shown
    assert "controller" not in owner.shown
    assert not session(owner.process.pid)
    assert not owner.shared_memory()
    assert not run_folder.running()


def test_beside_a_gpu_of_unknown_kind_models_run_on_the_cpu(
    up: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_TEST_GPUS", "GTX-470 x 1")
    owner = up(SMOLLM2_135M, "{serve: {replicas: 1}}")
    owner.wait_for("Stop it: Ctrl-C")
    assert "✓ plan: it fits: 1 replica on 1 node" in owner.shown


def test_gpus_of_unknown_kind_are_named_where_others_are_too_few(
    up: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_TEST_GPUS", "GTX-470 x 1")
    owner = up(SMOLLM2_135M, "{serve: {gpu: L4}}")
    assert owner.exit_code() == Exit.DOES_NOT_FIT
    assert "GPUs of unknown kind don't count, on here (GTX-470): label the node segue.io/gpu=KIND" in owner.shown


def test_a_part_of_a_gpu_for_a_model_on_two_is_refused_before_that(up: Callable[..., Owner]) -> None:
    owner = up(LLAMA_3_8B, "{serve: {share: 0.5, device: gpu, tensor_parallel: 2}}")
    assert owner.exit_code() != Exit.OK
    assert "allowed: 1, or a part of one GPU with both 1" in owner.shown
    assert not session(owner.process.pid)


def test_what_is_open_is_chosen_before_the_controller_hears_of_it(up: Callable[..., Owner]) -> None:
    owner = up(SMOLLM2_135M, "{serve: {tensor_parallel: auto, pipeline_parallel: auto}}")
    owner.wait_for("Stop it: Ctrl-C")
    assert "✓ plan: it fits: 1 replica on 1 node" in owner.shown
    assert "1 x TP 1 of m" in owner.shown


def test_a_model_that_the_planner_cant_read_is_the_engines_to_judge(up: Callable[..., Owner]) -> None:
    owner = up({"architectures": ["Unheard"]}, "{serve: {replicas: 1}}")
    owner.wait_for("Stop it: Ctrl-C")
    assert "✓ plan: left out, as it can't be read for planning" in owner.shown
