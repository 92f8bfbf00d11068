"""What choosing works from and comes to: devices that there are, the plan that won, those that lost and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.fits import Fit
from orchestrator.core.planning.places import WHOLE
from orchestrator.core.spec import Device, LoadSpec, Role

MOST_NAMED = 4  # sizes of nodes in words
NODE_DEVICES = 8  # of a GPU server that is yet to be bought


@dataclass(frozen=True, slots=True)
class Stock:
    """Devices of one kind. ``nodes`` has the number of free ones on each node, or in each NVLink domain of one that is
    split (``by_domain``); None: any number can be bought. ``left`` has the ten-thousandths that are left of devices in
    shared use."""

    kind: DeviceKind
    nodes: tuple[int, ...] | None = None
    left: tuple[int, ...] = ()
    by_domain: bool = False

    @property
    def sizes(self) -> frozenset[int]:
        """Numbers of devices that nodes have. A CPU that is yet to be bought is its node's only one."""
        if self.nodes is None:
            return frozenset((NODE_DEVICES if self.kind.kind is Device.GPU else 1,))
        return frozenset(self.nodes)

    @property
    def largest(self) -> int:
        """The most devices of a node, which bound tensor parallelism."""
        return max(self.sizes, default=0)

    @property
    def devices(self) -> int | None:
        return None if self.nodes is None else sum(self.nodes)

    def __str__(self) -> str:
        """'20 H100-80GB (2 x 8 + 4)', by nodes; and what is left of shared ones."""
        if self.nodes is None:
            return f"any number of {self.kind.name}"
        sizes = sorted(Counter(size for size in self.nodes if size).items(), reverse=True)
        nodes = [f"{count} x {size}" if count > 1 else str(size) for size, count in sizes]
        by_node = f" ({' + '.join(nodes[:MOST_NAMED])}{' + ...' * (len(nodes) > MOST_NAMED)})" if len(nodes) > 1 else ""
        parts = f", and {max(self.left) / WHOLE:g} at most of {len(self.left)} more" if self.left else ""
        return f"{self.devices} {self.kind.name}{by_node}{parts}"


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """One pool of the plan. Byte counts of a device and KV tokens of a replica are in ``fit``.

    ``ttft_ms`` is this pool's part of the time to the first token: waiting and prompt; for a decode pool taking over
    the KV and its first step. ``itl_ms`` is the time between two later tokens. Both are None where nothing is bounded,
    as more is asked for than can be done, and ``itl_ms`` is None for a prefill pool. ``batch`` sequences decode at once
    on a replica, ``busy`` is the part of its capacity in use. ``tokens_per_second`` are prompt tokens of a prefill
    pool, output tokens of any other. ``usd_per_hour`` and ``watts`` (devices at their limit) are for all replicas.
    """

    role: Role
    device: DeviceKind
    tensor_parallel: int
    pipeline_parallel: int
    share: float
    replicas: int
    fit: Fit
    ttft_ms: float | None
    itl_ms: float | None
    tokens_per_second: float
    batch: float
    busy: float
    usd_per_hour: float
    watts: float


@dataclass(frozen=True, slots=True)
class Loser:
    """Another way to run one pool, with the plan's other pool as chosen, and why it isn't the plan, in numbers.

    ``replicas`` and ``usd_per_hour`` (of the whole plan) are None where none would do.
    """

    role: Role
    device: str
    tensor_parallel: int
    pipeline_parallel: int
    why: str
    replicas: int | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan of one model: the cheapest by the hour that does what is asked.

    ``misses`` says in numbers what it does not do; it is empty, or there is no plan that does and this is the nearest.
    ``load`` is the spec's, or what was assumed of a request's size where it has none (``assumed``). Then there is no
    rate either: latencies are those of a single request, and rates and costs those of ``most_requests_per_second``,
    which is as much as the replicas can do without being too busy.

    A million tokens are prompt tokens, found in a cache or not, and output tokens together, at
    ``requests_per_second``. Money and energy count all devices of all replicas, all of the time.
    """

    pools: tuple[PoolChoice, ...]
    load: LoadSpec
    assumed: bool
    ttft_ms: float | None
    itl_ms: float | None
    requests_per_second: float
    most_requests_per_second: float
    usd_per_hour: float
    watts: float
    usd_per_million_tokens: float | None
    wh_per_million_tokens: float | None
    misses: tuple[str, ...]
    losers: tuple[Loser, ...]

    def pool(self, role: Role) -> PoolChoice:
        """KeyError if the model has no such pool."""
        for each in self.pools:
            if each.role is role:
                return each
        raise KeyError(role)


@dataclass(frozen=True, slots=True)
class NoChoice:
    """Nothing fits: why, and what was tried."""

    reasons: tuple[str, ...]
    losers: tuple[Loser, ...] = ()

    def __str__(self) -> str:
        return "; ".join(self.reasons)
