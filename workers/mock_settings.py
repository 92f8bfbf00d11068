"""What a mock engine can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.core.errors import WorkerStartFailed


@dataclass(frozen=True, slots=True)
class MockSettings:
    """What ``engine`` may say to a mock. vLLM's own arguments are left aside: they mean nothing to it."""

    prefill_tokens_per_second: float = 20_000.0
    step_seconds: float = 0.01
    transfer_bytes_per_second: float = 10e9
    start_seconds: float = 0.0
    lease_seconds: float = 30.0
    block_size: int = 16
    kv_blocks: int = 4096
    kv_block_bytes: int = 1 << 16
    max_num_seqs: int = 64
    max_model_len: int = 8192
    enable_prefix_caching: bool = True
    first_token: int = 1000
    vocabulary: int = 3000
    eos_one_in: int = 0
    restores: bool = False  # whether it says that it takes up a request's output where another engine left it

    @classmethod
    def of(cls, engine: Mapping[str, Any]) -> MockSettings:
        """Raises WorkerStartFailed where a value is of the wrong type."""
        chosen = {field.name: engine[field.name] for field in fields(cls) if engine.get(field.name) is not None}
        for name, value in chosen.items():
            wanted = type(getattr(cls(), name))
            if not isinstance(value, (int, float) if wanted is float else wanted):
                raise WorkerStartFailed(f"{value!r} is no {wanted.__name__}", where=f"engine.{name}")
        return cls(**chosen)
