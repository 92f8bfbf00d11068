"""What an engine is started with, as far as memory follows from it, with vLLM's (0.32) own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.cut import Cut
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.kv import CacheKept, PoolRules
from orchestrator.core.planning.overhead import Batch, Reserve
from orchestrator.core.planning.quantization import NAMED, Quantization, Scheme
from orchestrator.core.planning.shape import ModelShape
from orchestrator.core.planning.weights import Kept
from orchestrator.core.spec import Device

# Where nothing says otherwise: vLLM's for an engine that is built without a usage context, as Segue's workers do.
BATCHED_TOKENS, SEQUENCES = 2048, 128
UTILIZATION = 0.92
BLOCK_SIZE = {Device.GPU: 16, Device.CPU: 128}
LATENT_BLOCK_SIZE = {Device.GPU: 64, Device.CPU: 16}  # what the kernels of latent attention ask for
KERNEL_STEP = {Device.GPU: 16, Device.CPU: 32}
DTYPES = {"float32": Precision.FP32, "float": Precision.FP32, "bfloat16": Precision.BF16, "float16": Precision.FP16,
          "half": Precision.FP16}  # fmt: skip
ONLINE = {
    "fp8": NAMED[Precision.FP8],
    "bitsandbytes": Quantization("bitsandbytes", Scheme(4, 64, scale_bits=32)),
}
AUTO_LENGTH = -1


@dataclass(frozen=True, slots=True)
class Settings:
    """Engine arguments by vLLM's names. None leaves a choice to the model or to vLLM.

    ``max_model_len`` AUTO_LENGTH takes the longest that fits. ``share`` is the part of a device that a replica may
    have; ``context`` the tokens of the sequences that are counted (None: as long as they may get); ``stored_bytes``
    the checkpoint's own total.
    """

    dtype: Precision | None = None
    kv_cache_dtype: Precision | None = None
    quantization: Quantization | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float = UTILIZATION
    kv_cache_memory_bytes: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    hybrid_cache: bool = True
    share: float = 1.0
    context: int | None = None
    stored_bytes: int | None = None
    reserve: Reserve = field(default_factory=Reserve)

    def weights_kept(self, shape: ModelShape) -> Kept:
        """vLLM loads float32 checkpoints in bfloat16 unless told otherwise."""
        stored = Precision.BF16 if shape.dtype in (Precision.FP32, Precision.FP8) else shape.dtype
        return Kept(self.dtype or stored, self.quantization or shape.quantization)

    def cache_kept(self, shape: ModelShape) -> CacheKept:
        kept = self.weights_kept(shape)
        wished = kept.quantization.kv if kept.quantization else None
        return CacheKept(self.kv_cache_dtype or wished or kept.dtype, kept.dtype, shape.state_dtype or kept.dtype)

    def length(self, shape: ModelShape) -> int:
        """The longest sequence; that of the model where it is left open or to be found."""
        automatic = self.max_model_len is None or self.max_model_len == AUTO_LENGTH
        return shape.max_length if automatic or self.max_model_len is None else self.max_model_len

    def batch(self, shape: ModelShape) -> Batch:
        sequences = self.max_num_seqs or SEQUENCES
        tokens = self.max_num_batched_tokens or min(BATCHED_TOKENS, sequences * self.length(shape))
        return Batch(tokens, min(sequences, tokens), self.weights_kept(shape).dtype, self.enforce_eager)

    def pool_rules(self, shape: ModelShape, cut: Cut, kind: Device) -> PoolRules:
        size = self.block_size or BLOCK_SIZE[kind]
        if shape.latent and (self.block_size is None or kind is Device.CPU):
            size = LATENT_BLOCK_SIZE[kind]
        # Batches that may be under way at once: vLLM's asynchronous scheduling, one more than stages where it can.
        batches = cut.pipeline + 1 if kind is Device.GPU or cut.pipeline == 1 else cut.pipeline
        in_flight = batches * self.batch(shape).tokens
        return PoolRules(size, KERNEL_STEP[kind], self.hybrid_cache, self.enable_prefix_caching, in_flight)


def settings_of(engine: Mapping[str, Any], where: str = "engine", **own: Any) -> Settings:
    """Settings from a spec's ``engine`` arguments, vLLM's names; ``own`` are those of Segue (share, context ...).

    ConfigError for a value that can't be; arguments that memory doesn't follow from are passed over.
    """
    fields = Fields(engine, where)
    utilization = fields.get("gpu_memory_utilization")
    length = fields.get("max_model_len")
    return Settings(
        dtype=_precision(fields, "dtype"),
        kv_cache_dtype=_precision(fields, "kv_cache_dtype"),
        quantization=_online(fields),
        max_model_len=AUTO_LENGTH if length in (AUTO_LENGTH, "auto") else _optional(fields, "max_model_len"),
        block_size=_optional(fields, "block_size"),
        gpu_memory_utilization=UTILIZATION if utilization is None else _fraction(fields, utilization),
        kv_cache_memory_bytes=_optional(fields, "kv_cache_memory_bytes"),
        max_num_batched_tokens=_optional(fields, "max_num_batched_tokens"),
        max_num_seqs=_optional(fields, "max_num_seqs"),
        enforce_eager=fields.flag("enforce_eager"),
        enable_prefix_caching=fields.flag("enable_prefix_caching", default=True),
        hybrid_cache=not fields.flag("disable_hybrid_kv_cache_manager"),
        **own,
    )


def cut_of(engine: Mapping[str, Any], where: str = "engine") -> Cut:
    """Parallel sizes from engine arguments."""
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    fields = Fields(engine, where, dict.fromkeys(names, 1))
    tensor, pipeline, data = (fields.positive(name) for name in names)
    return Cut(tensor, pipeline, data, fields.flag("enable_expert_parallel"))


def _optional(fields: Fields, name: str) -> int | None:
    return None if fields.get(name) is None else fields.positive(name)


def _fraction(fields: Fields, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"gpu_memory_utilization has to be above 0 and at most 1, not {value!r}", where=fields.where)
    return float(value)


def _precision(fields: Fields, name: str) -> Precision | None:
    value = str(fields.get(name) or "auto").removeprefix("torch.")
    if value == "auto":
        return None
    if name == "kv_cache_dtype" and value.startswith("fp8"):
        return Precision.FP8
    if value in DTYPES:
        return DTYPES[value]
    hint = f"known: auto, {', '.join(DTYPES)}" + (", fp8" if name == "kv_cache_dtype" else "")
    raise ConfigError(f"the memory of {name}: {value} isn't known", where=fields.where, hint=hint)


def _online(fields: Fields) -> Quantization | None:
    """Formats that vLLM turns weights into as it loads them; the others say in words what config.json says too."""
    return ONLINE.get(str(fields.get("quantization")))
