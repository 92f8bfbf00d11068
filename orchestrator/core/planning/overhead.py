"""Device memory beside weights and KV: what a step computes with, and what runtime and libraries take.

GPUs' is an estimate on the high side, CPUs' is measured (vLLM 0.32); ``Reserve`` has the numbers, each with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.shape import Attention, Dense, Experts, Latent, Layer, ModelShape, State
from orchestrator.core.planning.weights import BYTES
from orchestrator.core.spec import Device

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reserve:
    """What runtime and libraries take on a device, in bytes. CPUs have none of it but their process.

    - ``context``: CUDA's context and loaded kernels, outside what vLLM counts as its own: about 0.5 GB on data centre
      GPUs.
    - ``runtime``: workspaces of cuBLAS and of attention kernels, and what an allocator can't give back.
    - ``collective``: NCCL's buffers and those of vLLM's own all-reduce, with more than one device only.
    - ``graph_layer``: CUDA graphs of all captured batch sizes, by layer; none with ``enforce_eager``. Half a GB for
      the 32 layers of an 8B model is usual.
    - ``process``: Python, torch and vLLM in the memory of a rank on a CPU, once weights are loaded: 0.59 to 0.63 GB, up
      to 0.72 GB where an allocator keeps what was loaded before vLLM laid it out anew (SmolLM2 in float32).
    - ``compiled``: the same rank's compiled code, without ``enforce_eager``: 0.09 GB.
    - ``buffers``: what a rank on a CPU adds after it has its KV: 0.05 to 0.06 GB.
    - ``worker``, ``core``: of a replica on CPUs, its worker's own process and, with several ranks, the engine core's.
    - ``logit``: bytes a score while a batch is sampled: the scores (2), in float32 (4), sorted (4) with their places
      (8), as probabilities and their sums (8), back in place (4), and what sorting works with. vLLM's log of Llama 3 8B
      has 1.26 GiB for 256 sequences, 41 bytes a score.
    """

    context: int = 512 * MIB
    runtime: int = 512 * MIB
    collective: int = 1024 * MIB
    graph_layer: int = 16 * MIB
    process: int = 624 * MIB
    logit: int = 40
    compiled: int = 96 * MIB
    buffers: int = 64 * MIB
    worker: int = 464 * MIB
    core: int = 480 * MIB


class Overhead(NamedTuple):
    """Bytes beside weights and KV. ``later`` is what vLLM doesn't see yet when it works out the room for KV."""

    seen: int
    later: int = 0

    @property
    def total(self) -> int:
        return self.seen + self.later


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest step: tokens, sequences, and what activations are kept in."""

    tokens: int
    sequences: int
    dtype: Precision
    eager: bool = False


def activation_bytes(shape: ModelShape, layers: Sequence[Layer], cut: Cut, batch: Batch) -> int:
    """The peak inside a step over these layers: the residual and a layer's input, and the widest layer's own."""
    widest = max((_width(layer, shape.hidden, cut) for layer in dict.fromkeys(layers)), default=0)
    return batch.tokens * (2 * shape.hidden + widest) * BYTES[batch.dtype]


def _width(layer: Layer, hidden: int, cut: Cut) -> int:
    """Numbers a token that the wider half of a layer holds at once."""
    ways = cut.tensor
    mixed = 0
    match layer.mixer:
        case Attention() as mixer:
            queries = mixer.heads * mixer.head_dim * (2 if mixer.gated else 1)
            mixed = 2 * queries + 2 * max(ways, mixer.kv_heads) * mixer.head_dim
        case Latent() as mixer:
            mixed = mixer.heads * (3 * mixer.nope_dim + 2 * mixer.rope_dim + 2 * mixer.value_dim)
        case State() as mixer:
            mixed = 4 * mixer.inner + 4 * mixer.groups * mixer.size
    fed = 0
    match layer.feed:
        case Dense() as feed:
            fed = (3 if feed.gated else 2) * feed.width
        case Experts() as feed:
            share = ways if cut.expert else 1  # whole experts aren't narrower on more devices
            fed = feed.per_token * (max(2 * feed.width * share, hidden * ways) + feed.width * share)
            fed += 3 * feed.shared_width
    return -(-max(mixed, fed) // ways)


def logit_bytes(shape: ModelShape, batch: Batch, reserve: Reserve) -> int:
    """What sampling the largest batch takes on the last stage, beside its hidden states."""
    scores = batch.sequences * shape.vocabulary * reserve.logit if shape.has_head else 0
    return scores + batch.tokens * shape.hidden * BYTES[batch.dtype]


def stage_overhead(
    shape: ModelShape, layers: Sequence[Layer], last: bool, cut: Cut, kind: Device, batch: Batch, reserve: Reserve
) -> Overhead:
    """Of a device of a stage, the context of a GPU and the copies of weights on a CPU left out.

    On a GPU vLLM runs the largest step before it looks what is left; on a CPU it looks at the process as it is.
    """
    peak = activation_bytes(shape, layers, cut, batch)
    if last:
        peak = max(peak, logit_bytes(shape, batch, reserve))
    if kind is Device.CPU:
        beside = reserve.worker + (reserve.core if cut.devices > 1 else 0)
        later = peak + reserve.buffers + -(-beside // cut.devices)
        return Overhead(reserve.process + (0 if batch.eager else reserve.compiled), later)
    graphs = 0 if batch.eager else reserve.graph_layer * len(layers)
    return Overhead(peak + reserve.runtime + graphs + (reserve.collective if cut.devices * cut.data > 1 else 0))
