"""Ports of this machine for clusters that need fixed ones."""

from __future__ import annotations

from workers.inventory import free_port


def free_ports(count: int) -> list[int]:
    """Different ones, that nobody has and that stay so: a cluster binds them half a minute after it is told them."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port("127.0.0.1"))
    return list(found)
