"""Consistent hashing: which workers a key belongs to, such that few keys move when workers come and go."""

from __future__ import annotations

import struct
from bisect import bisect_left
from hashlib import blake2b

from orchestrator.core.fleet import Pool, WorkerView

DIGESTS = 4  # a worker
POINTS_OF_DIGEST = struct.Struct("<8Q")
MOST_STEPS = 64  # along the ring for one key


def _points(worker_id: str) -> list[int]:
    points: list[int] = []
    for number in range(DIGESTS):
        points += POINTS_OF_DIGEST.unpack(blake2b(f"{number} {worker_id}".encode()).digest())
    return points


class Ring:
    """A pool's workers, each at 32 points of a circle of 64-bit numbers (Karger et al., "Consistent hashing and random
    trees", 1997). Follows a pool's changes when it is asked next."""

    def __init__(self) -> None:
        self._points: list[int] = []
        self._owners: dict[int, WorkerView] = {}
        self._members: dict[str, WorkerView] = {}
        self._version = -1

    def after(self, key: str, count: int, pool: Pool) -> list[WorkerView]:
        """Up to ``count`` workers of the pool, from the one that the key belongs to onwards."""
        if pool.version != self._version:
            self._follow(pool)
        found: dict[int, WorkerView] = {}
        place = bisect_left(self._points, int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little"))
        for step in range(min(len(self._points), MOST_STEPS)):
            view = self._owners[self._points[(place + step) % len(self._points)]]
            found[view.slot] = view
            if len(found) == count:
                break
        return list(found.values())

    def _follow(self, pool: Pool) -> None:
        members = {view.info.worker_id: view for view in pool.views}
        gone = [worker_id for worker_id in self._members if worker_id not in members]
        come = [worker_id for worker_id, view in members.items() if self._members.get(worker_id) is not view]
        if len(gone) + len(come) > 4 + len(members) // 8:
            self._points, self._owners, gone, come = [], {}, [], list(members)
        for worker_id in gone:
            self._remove(worker_id)
        for worker_id in come:
            for point in _points(worker_id):
                if point not in self._owners:
                    self._points.append(point)
                self._owners[point] = members[worker_id]
        self._points.sort()
        self._members, self._version = members, pool.version

    def _remove(self, worker_id: str) -> None:
        for point in _points(worker_id):
            if self._owners.pop(point, None) is not None:
                del self._points[bisect_left(self._points, point)]
