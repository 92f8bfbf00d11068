"""Every way to run a pool: kinds of devices that it may have, cuts that may be made, and those of them that fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from orchestrator.core.planning.choices import Stock
from orchestrator.core.planning.cut import Cut, cut_reasons
from orchestrator.core.planning.devices import Precision, plain
from orchestrator.core.planning.fits import Fit, NoFit, fits
from orchestrator.core.planning.places import WHOLE, parts_of
from orchestrator.core.planning.serving import MOST_REPLICAS, Demand, Option, option
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.spec import AUTO, Device, PoolSpec, Role

MOST_MIXES = 8  # of parts of two sizes on one device that are tried
MOST_STAGES = 8  # that are tried where the spec leaves it open, and
LONGEST = 64  # where fewer don't fit: then the fewest
ENOUGH_LONG = 4  # of those, as the other half may need one more


@dataclass(frozen=True, slots=True)
class Refused:
    """A way that is none, and the smallest changes with which it would be one."""

    role: Role
    device: str
    cut: Cut
    why: str
    changes: tuple[str, ...] = ()


class Candidates:
    """The ways to run one pool, those that fit and the others.

    ``cut`` has the sizes that no planner decides, ``other`` is the tensor parallelism of a model's other half.
    """

    __slots__ = ("options", "pool", "refused", "stock")

    def __init__(
        self,
        pool: PoolSpec,
        shape: ModelShape,
        stock: Sequence[Stock],
        settings: Settings,
        cut: Cut,
        demand: Demand,
        other: int = AUTO,
    ) -> None:
        self.pool = pool
        self.stock = {each.kind.name: each for each in allowed(pool, stock)}
        self.options: list[Option] = []
        self.refused: list[Refused] = []
        whole = ceil(demand.prompt + (1 if pool.role is Role.PREFILL else demand.output))
        settings = replace(settings, context=whole, share=pool.share)
        for each in self.stock.values():
            fitting = 0
            for way in _cuts(pool, each, shape, settings, cut, other):
                fitting += self._try(shape, way, each, settings, demand)
            for way in () if fitting else _long_cuts(pool, each, shape, settings, cut, other):
                fitting += self._try(shape, way, each, settings, demand)
                if fitting == ENOUGH_LONG:
                    break

    def _try(self, shape: ModelShape, way: Cut, stock: Stock, settings: Settings, demand: Demand) -> bool:
        """Whether it fits."""
        fixed = self.pool.tensor_parallel != AUTO and self.pool.share == 1
        found = _fitting(shape, way, stock, settings, stock.largest if fixed else 1)
        if not isinstance(found, Fit):
            changes = found.changes if isinstance(found, NoFit) else ()
            texts = tuple(each.text for each in changes if _is_there(stock, each.cut))
            self.refused.append(Refused(self.pool.role, stock.kind.name, way, str(found), texts))
            return False
        self.options.append(option(self.pool.role, shape, stock.kind, way, settings, found, demand))
        return True

    def replicas(self, option: Option) -> range:
        """How many replicas there may be: as many as the spec says, or one and more, as far as the devices go."""
        wanted = self.pool.replicas
        most = room(self.stock[option.kind.name], option)
        if wanted != AUTO:
            return range(wanted, min(wanted, most) + 1)
        return range(1, most + 1)


def allowed(pool: PoolSpec, stock: Sequence[Stock]) -> list[Stock]:
    """What there is of the kinds that the pool may run on."""
    words = {plain(word) for word in pool.gpu}
    return [
        each
        for each in stock
        if each.kind.kind is pool.device
        and (not words or words & {plain(word) for word in (each.kind.name, *each.kind.aliases)})
    ]


def _cuts(pool: PoolSpec, stock: Stock, shape: ModelShape, settings: Settings, cut: Cut, other: int) -> Iterator[Cut]:
    """Where sizes are open: all that a pool is cut to before it is cut into more stages than are of any use."""
    tensors = _tensors(pool, stock, shape, settings, cut, other)
    widest = _widest(pool, stock, tensors)
    pipelines: Sequence[int] = [pool.pipeline_parallel]
    if pool.pipeline_parallel == AUTO:
        pipelines = range(1, min(len(shape.layers), MOST_STAGES) + 1) if pool.share == 1 else [1]
    for ways in tensors:
        for stages in pipelines:
            if stages == 1 or ways in widest or pool.pipeline_parallel != AUTO:
                yield replace(cut, tensor=ways, pipeline=stages)


def _long_cuts(
    pool: PoolSpec, stock: Stock, shape: ModelShape, settings: Settings, cut: Cut, other: int
) -> Iterator[Cut]:
    """More stages, as far as there are devices for them."""
    if pool.pipeline_parallel != AUTO or pool.share < 1 or stock.nodes is None:
        return
    for ways in sorted(_widest(pool, stock, _tensors(pool, stock, shape, settings, cut, other)), reverse=True):
        most = min(len(shape.layers), sum(count // ways for count in stock.nodes) // cut.data, LONGEST)
        for stages in range(MOST_STAGES + 1, most + 1):
            yield replace(cut, tensor=ways, pipeline=stages)


def _tensors(pool: PoolSpec, stock: Stock, shape: ModelShape, settings: Settings, cut: Cut, other: int) -> list[int]:
    """Powers of two, as models and nodes are made for them, and what goes with the other half's. A part of a device
    can't be cut."""
    if pool.tensor_parallel != AUTO:
        return [pool.tensor_parallel]
    quantization = settings.weights_kept(shape).quantization
    most = stock.largest if pool.share == 1 else 1
    powers = (1 << power for power in range(max(1, most).bit_length()))
    fitting = (ways for ways in range(1, most + 1) if other and max(ways, other) % min(ways, other) == 0)
    sizes = sorted({*powers, *fitting})
    return [ways for ways in sizes if not cut_reasons(shape, replace(cut, tensor=ways), quantization)]


def _widest(pool: PoolSpec, stock: Stock, tensors: Sequence[int]) -> set[int]:
    """Pipelines go only over whole nodes, as a wider stage is faster and one more is slower."""
    if pool.tensor_parallel != AUTO:
        return {pool.tensor_parallel}
    return {max((ways for ways in tensors if ways <= node), default=1) for node in stock.sizes}


def _fitting(shape: ModelShape, cut: Cut, stock: Stock, settings: Settings, most_tensor: int) -> Fit | NoFit | str:
    """The fit, or why there is none: by devices, by memory, or because requests of the load are too long."""
    kind, tokens = stock.kind, settings.context or 0
    lacking = _none_free(stock, cut, settings.share)
    if lacking:
        return lacking
    dtype = settings.weights_kept(shape).dtype
    if kind.kind is Device.GPU and dtype is Precision.BF16 and dtype not in kind.flops:
        return f"{kind.name} has no units for bfloat16, which vLLM then refuses (dtype: float16 does without)"
    found = fits(shape, cut, kind, settings, most_tensor=most_tensor)
    if isinstance(found, Fit) and found.max_model_len < tokens:
        return f"requests of the load have {tokens} tokens, max_model_len is {found.max_model_len}"
    return found


def _none_free(stock: Stock, cut: Cut, share: float) -> str:
    """Why there is no device for it; empty if there is."""
    name = stock.kind.name
    if share < 1 and stock.devices == 0:
        most = max(stock.left, default=0)
        return "" if most >= parts_of(share) else f"no {name} has {share:g} of it free, {most / WHOLE:g} at most"
    if stock.devices == 0:
        return f"no {name} is free"
    if stock.nodes is not None and cut.tensor > stock.largest:
        largest = f"{stock.largest} {name} free" + " in one NVLink domain" * stock.by_domain
        return f"{cut.tensor} devices of one node are needed, no node has more than {largest}"
    return ""


def _is_there(stock: Stock, cut: Cut) -> bool:
    """Whether there are devices for a replica."""
    return stock.nodes is None or sum(count // cut.tensor for count in stock.nodes) >= cut.pipeline * cut.data


def room(stock: Stock, option: Option) -> int:
    """How many replicas there are devices for."""
    if stock.nodes is None:
        return MOST_REPLICAS
    stages = sum(count // option.cut.tensor for count in stock.nodes)
    if option.share < 1:
        parts = parts_of(option.share)
        stages = stages * (WHOLE // parts) + sum(left // parts for left in stock.left)
    return stages // (option.cut.pipeline * option.cut.data)


def together(stock: Stock, wanted: Sequence[tuple[Option, int]]) -> bool:
    """Whether there are devices for so many replicas of each, all of this kind: the largest stages and shares first.

    Where one size divides the other, as powers of two do, that finds room wherever there is some.
    """
    if stock.nodes is None:
        return True
    large, *rest = sorted(wanted, key=lambda each: (-each[0].cut.tensor, -each[0].share))
    fullest = WHOLE // parts_of(large[0].share)
    return any(_find_room(stock, large, rest, most) for most in range(fullest, max(0, fullest - MOST_MIXES), -1))


def _find_room(stock: Stock, large: tuple[Option, int], rest: Sequence[tuple[Option, int]], most: int) -> bool:
    """With so many of the large ones on one device at most, if they are parts: more of those may leave less room."""
    free, left = Counter(stock.nodes), Counter(stock.left)
    for wish, replicas in (large, *rest):
        stages = replicas * wish.cut.pipeline * wish.cut.data
        if wish.share < 1:
            parts = parts_of(wish.share)
            each = most if wish is large[0] else WHOLE // parts
            others = _taken(left, parts, stages, each)
            stages = -(-others // each)
            left[WHOLE] += stages
            _taken(left, parts, others, each)
        if _taken(free, wish.cut.tensor, stages):
            return False
    return True


def _taken(rooms: Counter[int], size: int, wanted: int, most: int = MOST_REPLICAS) -> int:
    """Takes so many of a size out of rooms, first those that it divides, small ones first, and at most so many out of
    each. How many found none."""
    for room in sorted(rooms, key=lambda room: (room % size, room)):
        each, count = min(room // size, most), rooms[room]
        full = min(count, wanted // each) if each else 0
        rest = min(wanted - full * each, each) if full < count else 0
        wanted -= full * each + rest
        rooms[room] -= full + (rest > 0)
        rooms[room - each * size] += full
        rooms[room - rest * size] += rest > 0
    return wanted
