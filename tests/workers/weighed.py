"""What a rank of a real engine holds, as the rank itself counts it.

vLLM takes ``Weighed`` by its name (``planned.WEIGHED``); ``WorkerProcess.ranks`` asks it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from typing import Any

import psutil
import torch
from vllm.model_executor.model_loader import base_loader
from vllm.platforms import current_platform

_taken: dict[str, int] = {}


class _Allocated(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks")),
        ("mapped", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks")),
        ("in_heaps", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("fordblks", "keepcost")),
    ]


def _allocated() -> int:
    """Bytes that are in use now; to the byte, where a process's size is a matter of what allocators keep."""
    if current_platform.is_cuda_alike():
        return int(torch.cuda.memory_allocated())
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Allocated
    found = mallinfo()
    return int(found.mapped + found.in_heaps)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of storages, each counted once."""
    storages = [each.untyped_storage() for each in tensors]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


_load, _lay_out = base_loader.BaseModelLoader.load_model, base_loader.process_weights_after_loading


def _weighed_load(*args: Any, **kwargs: Any) -> Any:
    before = _allocated()
    model = _load(*args, **kwargs)
    _taken["loaded"] = _allocated() - before
    return model


def _weighed_lay_out(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    _taken["weights"] = _bytes(model.parameters())  # on a CPU most of them are gone afterwards, into oneDNN's keeping
    _lay_out(model, *args, **kwargs)


base_loader.BaseModelLoader.load_model = _weighed_load
base_loader.process_weights_after_loading = _weighed_lay_out


class Weighed:
    """A second base class of vLLM's rank."""

    model_runner: Any

    def weighed(self) -> dict[str, Any]:
        """Bytes: ``weights`` as parameters, what loading them took in all, KV, and the whole of what the rank takes.

        And the device: its name, and the memory that it has.
        """
        if current_platform.is_cuda_alike():
            free, memory = torch.cuda.mem_get_info()
            used = memory - free
        else:
            memory, used = current_platform.get_device_total_memory(), psutil.Process().memory_info().rss
        return {
            **_taken,
            "kv": _bytes(self.model_runner.kv_caches),
            "used": used,
            "device": current_platform.get_device_name(),
            "memory": memory,
        }

    def hang(self) -> None:
        """As a device that answers no more: the process runs, and makes no step."""
        time.sleep(600)
