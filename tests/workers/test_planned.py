"""What the planner says of an engine before it starts is what the engine says of itself once it is up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import models
from orchestrator.core.planning.fits import PLACEHOLDER, Fit, predicted
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import checkpoint_bytes
from orchestrator.planning.catalogue import this_cpu
from tests.workers.support import TINY_ENGINE, WorkerProcess


@pytest.mark.engine
def test_kv_blocks_and_their_bytes_are_predicted_exactly(engines: tuple[WorkerProcess, WorkerProcess]) -> None:
    folder = Path(models.prepare("tiny:llama"))
    config = json.loads((folder / "config.json").read_text())
    fit = predicted(config, TINY_ENGINE, this_cpu())
    assert isinstance(fit, Fit)
    for engine in engines:
        facts = engine.snapshot["facts"]
        assert fit.kv_blocks - PLACEHOLDER == facts["kv_blocks_total"]
        assert fit.kv_bytes_per_token * fit.block_size == facts["kv_block_bytes"]
        assert fit.max_model_len == facts["max_model_len"]
        assert checkpoint_bytes(shape_of(config)) == pytest.approx(facts["weight_bytes"], rel=0.01)
