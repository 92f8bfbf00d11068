"""Several Ray nodes on this machine, as a cluster that others started: ``python -m tests.ray_nodes COUNT``.

A program of its own, as a process can be a driver of one Ray only; it ends with its standard input. Each line there
adds one more node.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

OBJECT_STORE_BYTES = 80 << 20
START_SECONDS = 60
ATTEMPTS = 3


@dataclass(frozen=True)
class Nodes:
    """``address`` is where a driver joins them."""

    address: str
    program: subprocess.Popen[str]

    def add(self) -> None:
        """One more, soon."""
        assert self.program.stdin is not None
        self.program.stdin.write("add\n")
        self.program.stdin.flush()


@contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """Yields the address at which a driver joins them. The first of them is the head."""
    with several_nodes(count) as nodes:
        yield nodes.address


@contextmanager
def several_nodes(count: int, **environment: str) -> Iterator[Nodes]:
    """The same nodes, with more of them to be had; ``environment`` is what all of their processes get besides."""
    command = [sys.executable, "-m", "tests.ray_nodes", str(count)]
    whole = {**os.environ, **environment}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=whole) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            lines = iter(program.stdout.readline, "")
            yield Nodes(next(line for line in lines if line.startswith("address ")).split()[1], program)
        finally:
            program.stdin.close()
            program.wait(START_SECONDS)


def main() -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for number in range(1, int(sys.argv[1])):
        cluster.add_node(**{**node, "labels": {"rack": f"r{number}"}})
    print(f"address {cluster.address}", flush=True)  # noqa: T201
    for number, _ in enumerate(sys.stdin, int(sys.argv[1])):
        for _ in range(ATTEMPTS):  # a busy machine starts some too slowly for Ray
            with suppress(Exception):
                cluster.add_node(**{**node, "labels": {"rack": f"r{number}"}})
                break
    cluster.shutdown()


if __name__ == "__main__":
    main()
