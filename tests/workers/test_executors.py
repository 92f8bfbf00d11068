"""Which executor a replica gets, by its device and by how the model is cut."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workers.worker_process import assignment
from workers.executors import executor_arguments


@pytest.mark.parametrize(
    ("device", "tensor", "pipeline", "expected"),
    [
        ("cpu", 1, 1, {}),
        ("gpu", 1, 1, {}),
        # In a placement group vLLM's own choice would be Ray, whose ranks want GPUs.
        ("cpu", 2, 1, {"distributed_executor_backend": "mp"}),
        # Its own choice would be to refuse: the worker's process sees none of the GPUs of its placement group.
        ("gpu", 4, 1, {"distributed_executor_backend": "ray"}),
        ("gpu", 4, 2, {"distributed_executor_backend": "ray"}),
    ],
)
def test_the_executor_follows_device_and_parallelism(
    device: str, tensor: int, pipeline: int, expected: dict[str, Any]
) -> None:
    order = assignment({"device": device, "tensor_parallel": tensor, "pipeline_parallel": pipeline})
    assert executor_arguments(order) == expected
