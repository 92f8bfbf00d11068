"""The planner beside a real engine on a GPU: memory of a model that is made on the spot. On a CPU the same, smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from orchestrator.core.planning.devices import DeviceKind
from orchestrator.planning import catalogue
from tests.gpu.support import gpus
from tests.workers.planned import CPU_SHARE, WEIGHED, check, node_memory
from tests.workers.support import WorkerProcess, engine_process

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LAYERS = {"cpu": 2, "gpu": 24}  # 132 and 478 million parameters
ENGINE: dict[str, dict[str, Any]] = {
    "cpu": {"gpu_memory_utilization": CPU_SHARE, "enforce_eager": True},
    "gpu": {"gpu_memory_utilization": 0.8},
}
CASES = [
    pytest.param("cpu", 1, id="cpu"),
    pytest.param("gpu", 1, id="gpu", marks=pytest.mark.gpu),
    pytest.param("gpu", 2, id="two-gpus", marks=pytest.mark.gpu),
]


def made(folder: Path, tokenizer: str, layers: int) -> str:
    """A Llama of random weights in bfloat16, with a head of its own, in ``folder``."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def kind_of(worker: WorkerProcess, device: str) -> DeviceKind:
    """The catalogue's entry for what the first rank runs on, whose memory it states within 3%."""
    if device == "cpu":
        return replace(catalogue.this_cpu(), memory_bytes=node_memory(worker))
    found = worker.ranks()[0]
    if found["device"] not in catalogue.builtin():
        pytest.skip(f"the catalogue has no {found['device']}")
    kind = catalogue.builtin().find(found["device"])
    assert kind.memory_bytes == pytest.approx(found["memory"], rel=0.03)
    return kind


@pytest.mark.parametrize(("device", "tensor"), CASES)
def test_memory_is_as_predicted(device: str, tensor: int, tiny_path: str, tmp_path: Path) -> None:
    if device == "gpu" and gpus() < tensor:
        pytest.skip(f"needs {tensor} GPU(s), this machine has {gpus()}")
    model = made(tmp_path / "model", tiny_path, LAYERS[device])
    engine = {"max_model_len": 2048, **ENGINE[device], **WEIGHED}
    if tensor > 1:  # its ranks are processes: there is no Ray here
        engine |= {"tensor_parallel_size": tensor, "distributed_executor_backend": "mp"}
    started = {"source": model, "device": device, "tensor_parallel": tensor, "engine": engine}
    with engine_process("serve", tmp_path, **started) as worker:
        check(worker, model, engine, kind_of(worker.ready(), device))
