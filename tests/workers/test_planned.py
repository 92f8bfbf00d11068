"""The planner is right about real engines; those of a model that is cut are in ``test_parallel``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from vllm.config import ModelConfig, ParallelConfig

from orchestrator.core.planning.cut import Obstacle
from orchestrator.core.planning.fits import NoFit, predicted
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import checkpoint_bytes
from orchestrator.planning.catalogue import this_cpu
from tests.workers.planned import CPU_SHARE, WEIGHED, check, node_memory
from tests.workers.support import TINY_ENGINE, WorkerProcess, engine_process


@pytest.mark.engine
def test_the_tiny_model(engines: tuple[WorkerProcess, WorkerProcess], tiny_path: str) -> None:
    for engine in engines:
        check(engine, tiny_path, {**TINY_ENGINE, **WEIGHED}, this_cpu())


@pytest.mark.engine
@pytest.mark.parametrize(
    ("tensor", "engine"),
    [
        pytest.param(1, {"dtype": "float32", "gpu_memory_utilization": CPU_SHARE}, id="TP=1"),
        # In the checkpoint's own bfloat16. Its 9 heads and 3 KV heads divide by 3.
        pytest.param(3, {"tensor_parallel_size": 3, "kv_cache_memory_bytes": 64 << 20}, id="TP=3"),
    ],
)
def test_smollm2(smollm2_path: str, tensor: int, engine: dict[str, object], tmp_path: Path) -> None:
    engine = {"max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True, "block_size": 32, **engine, **WEIGHED}
    cut = {"source": smollm2_path, "tensor_parallel": tensor, "engine": engine}
    with engine_process("serve", tmp_path, **cut) as worker:
        memory = node_memory(worker.ready())
        check(worker, smollm2_path, engine, replace(this_cpu(), memory_bytes=memory))


def test_smollm2_cannot_be_cut_in_two_and_vllm_says_the_same(smollm2_path: str) -> None:
    config = json.loads((Path(smollm2_path) / "config.json").read_text())
    outcome = predicted(config, {"tensor_parallel_size": 2}, this_cpu())
    assert isinstance(outcome, NoFit)
    assert [reason.obstacle for reason in outcome.reasons] == [Obstacle.HEADS]
    assert "9 attention heads can't be divided by TP=2" in str(outcome)
    with pytest.raises(ValueError, match=r"attention heads \(9\) must be divisible by tensor parallel size \(2\)"):
        ModelConfig(smollm2_path).verify_with_parallel_config(
            ParallelConfig(tensor_parallel_size=2, distributed_executor_backend="mp")
        )


@pytest.mark.parametrize("path", ["tiny_path", "smollm2_path"])
def test_what_a_checkpoint_has(path: str, request: pytest.FixtureRequest) -> None:
    folder = Path(request.getfixturevalue(path))
    config = json.loads((folder / "config.json").read_text())
    files = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
    assert checkpoint_bytes(shape_of(config)) == pytest.approx(files, rel=0.001)
