"""What the planner says of an engine before it starts, beside what the engine says of itself once it is up."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.fits import PLACEHOLDER, Fit, predicted
from orchestrator.core.planning.settings import cut_of, settings_of
from orchestrator.core.planning.shape_config import shape_of
from orchestrator.core.planning.weights import stage_copies
from orchestrator.core.spec import Device
from orchestrator.planning.this_cpu import memory_bytes
from tests.workers.support import WorkerProcess

WEIGHED = {"worker_extension_cls": "tests.workers.weighed.Weighed"}  # its ranks say what they hold
OBJECTS = 6e6  # bytes that a loaded model has beside its weights: tables of positions, and Python's own
CPU_SHARE = round(5e9 / memory_bytes(), 3)  # where vLLM sizes the KV: allocators keep 0.1 GB more or less

_log = logging.getLogger(__name__)


def node_memory(worker: WorkerProcess) -> int:
    """Bytes of the NUMA node that vLLM divided up for an engine. Those of a virtual machine may be others by now."""
    (found, *_) = re.findall(r" set \([\d.]+/([\d.]+)\) GiB", worker.log.read_text())
    return int(float(found) * (1 << 30))


def check(worker: WorkerProcess, model: str, engine: Mapping[str, Any], device: DeviceKind) -> Fit:
    """Each rank's weights within 1%; KV within 3% where vLLM works it out by itself, to the byte where it is told.

    ``model`` is the folder and ``engine`` the arguments that ``worker`` was started with, ``WEIGHED`` among them.
    """
    config = json.loads((Path(model) / "config.json").read_text())
    fit = predicted(config, engine, device)
    assert isinstance(fit, Fit), str(fit)
    facts, within = worker.snapshot["facts"], 0 if "kv_cache_memory_bytes" in engine else 0.03
    (tokens,) = re.findall(r" KV cache size: ([\d,]+) tokens", worker.log.read_text())
    assert fit.kv_tokens == pytest.approx(int(tokens.replace(",", "")), rel=within)
    assert fit.kv_blocks - PLACEHOLDER == pytest.approx(facts["kv_blocks_total"], rel=within)
    assert fit.kv_bytes_per_token * fit.block_size == facts["kv_block_bytes"]
    assert fit.max_model_len == facts["max_model_len"]

    shape, cut, ranks = shape_of(config), cut_of(engine), worker.ranks()
    copies = stage_copies(shape, cut, settings_of(engine).weights_kept(shape))
    assert len(ranks) == cut.devices
    for rank, held in enumerate(ranks):
        stage = rank // cut.tensor
        said, again = fit.stages[stage], copies[stage] if device.kind is Device.CPU else 0
        _log.info("%s, rank %d: predicted %s, and %d of weights again; held %s", cut, rank, said, again, held)
        assert said.weights == pytest.approx(held["weights"], rel=0.01)
        assert said.weights + again == pytest.approx(held["loaded"], rel=0.01, abs=OBJECTS)
        assert said.kv == pytest.approx(held["kv"], rel=within)
        assert held["used"] <= said.total
    return fit
