"""What a model that is cut over devices of one kind reaches: seconds of a prompt, of a decode step and of a transfer.

A roofline (Williams, Waterman and Patterson, "Roofline", 2009): each part of a step (dense layers, routed experts,
attention, the head) takes what its bytes take or what its operations take, whichever is longer. Added to these are the
all-reduces of tensor parallelism (Pope et al., "Efficiently scaling transformer inference", 2022, section 3) and the
bubble of pipeline stages (Narayanan et al., "Efficient large-scale language model training on GPU clusters", 2021,
section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import DeviceKind
from orchestrator.core.planning.kv import sequence_bytes
from orchestrator.core.planning.settings import Settings
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.weights import BYTES
from orchestrator.core.planning.work import Matmuls, Routed, StageWork, stage_work
from orchestrator.core.spec import Device


@dataclass(frozen=True, slots=True)
class Reached:
    """The parts of a device's peaks that engines reach in practice, and seconds that are none of its rates.

    - ``compute``, ``memory``: of FLOP/s in a prompt's matrix products, of bytes/s in a decode step's;
    - ``link``, ``network``: of bytes/s between devices of a node, and between nodes;
    - ``step``: scheduling, sampling and passing on of any step; ``layer``: gaps between a layer's kernels, and norms;
      ``routing``: sorting tokens by experts and back, in a layer that has some;
    - ``hop``: a message between devices of a node that have links of their own, ``bus_hop``: over the host's bus,
      ``far_hop``: between nodes;
    - ``handover``: what a hand-over of KV takes beside its bytes.
    """

    compute: float
    memory: float
    link: float
    network: float
    step: float
    layer: float
    routing: float
    hop: float
    bus_hop: float
    far_hop: float
    handover: float


# The same caution as in core.cost: 45% of the operations, half the network, 5 ms a hand-over. That one has 65% of an
# A100's bandwidth and 3 ms a step, a router's guess that is soon corrected; here the fixed part is split into steps,
# layers and hops, as it weighs more on fast and on many devices, which leaves 75% for bandwidth: 7.5 ms for Llama 3 8B
# on an H100 and 11 ms on an A100 80GB. A CPU's peaks are measured (planning/this_cpu), and engines come less near them:
# on two cores with 24 GB/s SmolLM2 135M makes some 40 tokens a second, which half of that bandwidth explains.
REACHED = {
    Device.GPU: Reached(
        compute=0.45,
        memory=0.75,
        link=0.7,
        network=0.5,
        step=1e-3,
        layer=15e-6,
        routing=60e-6,
        hop=2e-6,
        bus_hop=10e-6,
        far_hop=20e-6,
        handover=5e-3,
    ),
    Device.CPU: Reached(
        compute=0.4,
        memory=0.5,
        link=0.5,
        network=0.5,
        step=2e-3,
        layer=50e-6,
        routing=200e-6,
        hop=20e-6,
        bus_hop=20e-6,
        far_hop=50e-6,
        handover=5e-3,
    ),
}
FASTEST_BUS = 64e9  # bytes a second: PCIe 5.0 x16


@dataclass(frozen=True, slots=True)
class PromptSeconds:
    """``alone``: from a prompt's start to its first token; ``busy``: what one takes of the replica, several computed
    together where they are short; ``together``: how many; ``steps``: of a prompt, or of those together."""

    alone: float
    busy: float
    together: float
    steps: int


@dataclass(frozen=True, slots=True)
class _Timed:
    """Seconds to read matrices, and seconds that a token takes to pass them."""

    read: float
    token: float

    def seconds(self, tokens: float, steps: float = 1.0) -> float:
        return max(steps * self.read, tokens * self.token)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A pipeline stage's work by the device's rates. ``attended``: window, seconds while decoding and in a prompt."""

    work: StageWork
    dense: _Timed
    head: _Timed
    routed: tuple[tuple[Routed, _Timed], ...]
    attended: tuple[tuple[int, float, float], ...]
    state: float
    fixed: float


class Roofline:
    """One replica's speeds. ``settings.share`` of a device has that share of all its rates."""

    __slots__ = (
        "_chunk",
        "_far",
        "_hidden",
        "_hop",
        "_link",
        "_memory",
        "_reached",
        "_sequences",
        "_stages",
        "cut",
        "network",
    )

    def __init__(self, shape: ModelShape, cut: Cut, device: DeviceKind, settings: Settings | None = None) -> None:
        """ConfigError if the device has no rate for the model's numbers."""
        settings = settings or Settings()
        kept, batch = settings.weights_kept(shape), settings.batch(shape)
        self._reached = reached = REACHED[device.kind]
        self.cut = cut
        self._chunk, self._sequences = batch.tokens, batch.sequences
        self._hidden = shape.hidden * BYTES[kept.dtype]
        self._memory = device.memory_bandwidth * reached.memory * settings.share
        self._link = device.link_bandwidth * reached.link
        self._hop = reached.bus_hop if device.link_bandwidth <= FASTEST_BUS else reached.hop
        self._far = device.network_bandwidth * reached.network
        self.network = self._far * settings.share * cut.devices * cut.data  # bytes a second into or out of the replica
        flops = reached.compute * settings.share

        def timed(matmuls: Matmuls) -> _Timed:
            token = sum(count / (device.compute(precision) * flops) for precision, count in matmuls.operations)
            return _Timed(matmuls.bytes / self._memory, token)

        plain = device.compute(kept.dtype) * flops
        self._stages = tuple(
            dict.fromkeys(
                _Stage(
                    work,
                    timed(work.dense),
                    timed(work.head),
                    tuple((routed, timed(routed.all)) for routed in work.routed),
                    tuple((each.window, each.decoding / plain, each.prompt / plain) for each in work.attended),
                    work.state / plain,
                    work.layers * reached.layer + work.routings * reached.routing,
                )
                for work in stage_work(shape, cut, kept, settings.cache_kept(shape))
            )
        )

    def step(self, batch: float, context: float) -> float:
        """Seconds of a decode step of ``batch`` sequences with ``context`` tokens each.

        Stages work on as many parts of the batch at once, each of at least one sequence; the slowest sets the pace.
        """
        stages = self.cut.pipeline
        rows = max(1.0, batch / self.cut.data / stages)
        slowest = max(self._decoding(stage, rows, context) for stage in self._stages)
        return self._reached.step + stages * slowest + (stages - 1) * self._passing(rows)

    def prompt(self, fresh: float, cached: float = 0.0) -> PromptSeconds:
        """Seconds of a prompt of which ``cached`` tokens are found and ``fresh`` ones are computed, in chunks.

        Chunks follow each other through the stages, so that the last ones idle at first (Narayanan et al., 2021); short
        prompts share a chunk when they wait for it together. Each data-parallel rank has chunks of its own.
        """
        steps = ceil(fresh / self._chunk)
        alone, drain = self._filled(fresh, cached, 1.0, steps)
        rows = max(1.0, min(self._sequences, self._chunk / fresh))
        full, _ = self._filled(fresh, cached, rows, steps)
        together = rows * self.cut.data
        return PromptSeconds(alone + drain, full / together, together, steps)

    def _filled(self, fresh: float, cached: float, prompts: float, steps: int) -> tuple[float, float]:
        """Seconds of so many like prompts at once, and of the stages after the first for the last chunk."""
        later = self.cut.pipeline - 1
        slowest = max(self._prompt(stage, fresh, cached, prompts, steps) for stage in self._stages)
        drain = later * (slowest / steps + self._passing(fresh * prompts / steps))
        return steps * self._reached.step + slowest, drain

    def _decoding(self, stage: _Stage, rows: float, context: float) -> float:
        attention = stage.state
        for window, decoding, _ in stage.attended:
            attention += decoding * (min(context, window) if window else context)
        read = rows * stage.work.cache_bytes(context) / self._memory
        return (
            stage.fixed
            + stage.dense.seconds(rows)
            + stage.head.seconds(rows)
            + self._routed(stage, rows, 1)
            + max(read, rows * attention)
            + self._exchanged(stage, rows)
        )

    def _prompt(self, stage: _Stage, fresh: float, cached: float, prompts: float, steps: int) -> float:
        attention = fresh * stage.state
        for window, _, prompt in stage.attended:
            attention += prompt * attended_tokens(fresh, cached, window)
        # Each step reads what was computed before; counted as if it were the whole prompt from the first one on.
        read = prompts * steps * stage.work.cache_bytes(fresh + cached) / self._memory
        tokens = fresh * prompts
        return (
            steps * stage.fixed
            + stage.dense.seconds(tokens, steps)
            + stage.head.seconds(prompts)
            + self._routed(stage, tokens, steps)
            + max(read, prompts * attention)
            + steps * self._exchanged(stage, tokens / steps)
        )

    def _routed(self, stage: _Stage, tokens: float, steps: int) -> float:
        """Experts are shared by all data-parallel ranks, which compute as many tokens each."""
        total = 0.0
        for routed, timed in stage.routed:
            everyone = tokens * self.cut.data
            total += timed.seconds(everyone, steps * routed.touched(everyone / steps))
        return total

    def _exchanged(self, stage: _Stage, tokens: float) -> float:
        """All-reduces of a step; routed experts that data-parallel ranks share add up the tokens of all of them."""
        tensor, data = self.cut.tensor, self.cut.data
        total = stage.work.reductions * self._ring(tokens, tensor)
        return total if data == 1 else total + stage.work.routings * self._ring(tokens * data, tensor * data)

    def _ring(self, tokens: float, ways: int) -> float:
        """An all-reduce over a ring: 2 (n - 1) / n of the bytes over each link, in 2 (n - 1) messages."""
        return 2.0 * (ways - 1) * (tokens * self._hidden / ways / self._link + self._hop)

    def _passing(self, tokens: float) -> float:
        """From a stage to the next one, which may be on another node; each device sends its share."""
        return tokens * self._hidden / self.cut.tensor / self._far + self._reached.far_hop


def transfer_seconds(bytes_: float, sender: Roofline, receiver: Roofline) -> float:
    """Handing over KV of so many bytes from one replica to another, all devices of both at once."""
    handover = max(sender._reached.handover, receiver._reached.handover)
    return bytes_ / min(sender.network, receiver.network) + handover


def prompt_bytes(shape: ModelShape, tokens: int, settings: Settings) -> int:
    """What a prompt of so many tokens has to hand over."""
    return sequence_bytes(shape, tokens, settings.cache_kept(shape))


def attended_tokens(fresh: float, cached: float, window: int) -> float:
    """Tokens that ``fresh`` ones after ``cached`` others attend to, in sum: each to those before it and itself."""
    if not window:
        return fresh * (cached + (fresh + 1.0) / 2.0)
    short = min(fresh, max(0.0, window - cached))  # these see all that is before them
    return short * (cached + (short + 1.0) / 2.0) + (fresh - short) * window
