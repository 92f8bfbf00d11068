"""Workers for tests of the core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.core.spec import Role
from orchestrator.core.types import EngineFacts, WorkerInfo

FACTS = EngineFacts(
    block_size=16, kv_blocks_total=100, kv_block_bytes=1000, max_model_len=512, max_num_seqs=8, kv_events=True
)


def worker(worker_id: str, role: Role, model: str = "m", **facts: Any) -> WorkerInfo:
    """A worker that is up; ``facts`` over ``FACTS``."""
    return WorkerInfo(worker_id, model, role, f"{worker_id}:1", epoch=1, facts=replace(FACTS, **facts))
