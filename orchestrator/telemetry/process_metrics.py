"""What a gateway process holds at the moment: what has to come down again once its requests have ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessMetrics(Collector):
    """Read off the process when it is scraped, on its event loop."""

    def __init__(self, gateway: str, open_requests: Callable[[], int], sessions: Callable[[], int]) -> None:
        self._gateway = gateway
        self._held: dict[str, tuple[str, Callable[[], int]]] = {
            "segue_open_requests": ("Sequences without an outcome yet", open_requests),
            "segue_worker_sessions": ("Open sessions with workers", sessions),
            "segue_tasks": ("Tasks of the gateway's event loop", _tasks),
            "segue_resident_bytes": ("Memory of the gateway process", _resident),
            "segue_open_descriptors": ("File descriptors of the gateway process", _descriptors),
        }

    def collect(self) -> Iterator[Metric]:
        for name, (text, count) in self._held.items():
            family = GaugeMetricFamily(name, text, labels=("gateway",))
            family.add_metric((self._gateway,), count())
            yield family


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # not scraped from a loop
        return 0


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
