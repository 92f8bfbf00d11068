"""This machine's CPU as a device, measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.core.planning.devices import DeviceKind, Precision
from orchestrator.core.spec import Device

NAME = "this-cpu"
ARRAYS_BYTES = 256 << 20  # of all copies together: more than most caches hold
MATRIX_SECONDS = 0.05
SMALLEST, LARGEST = 512, 4096  # a matrix's rows
# Defaults of a server's hardware thread: on-demand list price of a general-purpose instance (AWS m7i, 2026), and a
# two-socket server's processors and memory divided by its threads.
USD_PER_THREAD_HOUR, WATTS_PER_THREAD = 0.05, 5.0
NETWORK_BANDWIDTH = 1.25e9  # 10 Gbit/s


def this_cpu(parts: int = 1) -> DeviceKind:
    """This machine's CPU, or one of ``parts`` equal parts of it, as pools with ``device: cpu`` use it.

    All of its memory counts for each part, as engines take what they need and not equal shares of it.

    Takes less than half a second beside numpy's import. Measured, best of several, all on the threads that this process
    may use:

    - memory: what the machine has, or the lowest cgroup limit above this process;
    - memory bandwidth: copies of arrays, a thread each, counted as read and written (McCalpin, STREAM's copy);
    - float32 FLOP/s: numpy's matrix product, 2 n^3 operations, n so that one takes some 50 ms.

    Narrower precisions are not measured: what reckons with them gets float32's rate, which is too low for a CPU that
    has instructions for them (AVX-512 BF16, AMX). Peers exchange data through memory, so the link is half its
    bandwidth. Price, watts and network are defaults to override.
    """
    threads = len(os.sched_getaffinity(0))
    bandwidth = memory_bandwidth(threads)
    return DeviceKind(
        name=NAME,
        maker=platform.processor() or platform.machine(),
        kind=Device.CPU,
        memory_bytes=memory_bytes(),
        memory_bandwidth=bandwidth / parts,
        flops={Precision.FP32: matrix_flops() / parts},
        link_bandwidth=bandwidth / 2 / parts,
        link="memory",
        network_bandwidth=NETWORK_BANDWIDTH / parts,
        usd_per_hour=USD_PER_THREAD_HOUR * threads / parts,
        watts=WATTS_PER_THREAD * threads / parts,
        aliases=("cpu",),
    )


def memory_bytes(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may have at most: the machine's memory, or a cgroup's limit where that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(proc, root)])


def _limits(proc: Path, root: Path) -> list[int]:
    """Limits of this process's cgroups and of those above them, version 2 and 1; none where there are no cgroups."""
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts) + 1):
            try:
                limits.append(int((base.joinpath(*parts[:depth]) / name).read_text(encoding="ascii")))
            except (OSError, ValueError):  # in a container the path is the host's; "max" is no limit
                continue
    return limits


def memory_bandwidth(threads: int) -> float:
    """Bytes/s that copies read and write together, best of three."""
    import numpy as np  # here, as it takes a tenth of a second that other commands need not pay

    sources = [np.ones(ARRAYS_BYTES // 2 // threads // 8) for _ in range(threads)]
    targets = [np.zeros_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:

        def once() -> None:
            list(pool.map(np.copyto, targets, sources))

        once()  # the first write to a page is the kernel's work
        return ARRAYS_BYTES / min(_seconds(once) for _ in range(3))


def matrix_flops() -> float:
    """FLOP/s of a float32 matrix product, best of three."""
    import numpy as np

    def product(rows: int) -> Callable[[], object]:
        left, right = np.ones((rows, rows), np.float32), np.ones((rows, rows), np.float32)
        return lambda: left @ right

    small = product(SMALLEST)
    small()
    rate = 2.0 * SMALLEST**3 / min(_seconds(small) for _ in range(3))
    rows = min(max(int((rate * MATRIX_SECONDS / 2.0) ** (1 / 3)), SMALLEST), LARGEST)
    large = product(rows)
    return max(rate, 2.0 * rows**3 / min(_seconds(large) for _ in range(3)))


def _seconds(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start
