"""How many bytes a weight matrix takes in each format that quantizes it, and which matrices a format leaves alone.

What is stored with the numbers, from each format's own description:

- GPTQ (AutoGPTQ): packed int32, a scale (16 bits) and a packed zero point for each group, ``g_idx`` (int32) an input;
- AWQ: packed int32, a scale (16 bits) and a packed zero point for each group;
- compressed-tensors: packed or whole numbers, scales by tensor, channel, group or block, zero points if asymmetric;
- fp8: a scale (32 bits) for the matrix, or for each block (DeepSeek-V3, 2024, section 3.3.2);
- bitsandbytes: NF4 with a 32-bit absmax for 64 numbers, with double quantization 8 bits and a second absmax for 256 of
  these (Dettmers et al., "QLoRA", 2023); int8 with a 32-bit scale an output;
- MXFP4: an 8-bit scale for 32 numbers (OCP Microscaling, 2023), for routed experts only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from orchestrator.core.planning.devices import Precision


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the numbers of one matrix are kept.

    Scales are shared by ``group`` inputs of one output (0: by all of them), by ``block`` (outputs, inputs), or by the
    whole ``tensor``.
    """

    bits: int
    group: int = 0
    block: tuple[int, int] | None = None
    tensor: bool = False
    scale_bits: float = 16
    zero_bits: int = 0
    index: bool = False  # an int32 for each input
    precision: Precision = Precision.INT4
    mends: bool = False  # a group that a device would have part of is filled up instead of refused

    def bytes(self, inputs: int, outputs: int) -> int:
        """A matrix of this size, with all that is kept beside its numbers."""
        scales = self._scales(inputs, outputs)
        numbers = -(-inputs * outputs * self.bits // 8)
        return numbers + -(-int(scales * (self.scale_bits + self.zero_bits)) // 8) + 4 * inputs * self.index

    def _scales(self, inputs: int, outputs: int) -> int:
        if self.tensor:
            return 1
        if self.block:
            return -(-outputs // self.block[0]) * -(-inputs // self.block[1])
        return outputs * (-(-inputs // self.group) if self.group else 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of module names and what holds for them; ``scheme`` None leaves them as they are."""

    pattern: str
    scheme: Scheme | None = None


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint's or an engine's quantization does to linear layers; the first rule that matches wins.

    ``kv`` is what the checkpoint wants its KV cache kept in. Embeddings, norms, routers and convolutions stay as they
    are in every format; ``lm_head`` does unless ``head``.
    """

    method: str
    scheme: Scheme | None
    rules: tuple[Rule, ...] = ()
    head: bool = False
    experts_only: bool = False
    kv: Precision | None = None

    @property
    def precision(self) -> Precision:
        """What most of its matrices are kept in."""
        kept = self.scheme or next((rule.scheme for rule in self.rules if rule.scheme), None)
        return kept.precision if kept else Precision.BF16

    @property
    def by_layer(self) -> bool:
        """Whether any rule names a layer by its number, so that layers that look alike may differ."""
        return any(any(letter.isdigit() for letter in rule.pattern) for rule in self.rules)

    def of(self, name: str, *, expert: bool = False, head: bool = False) -> Scheme | None:
        """The scheme of the linear layer of this full name; None where it stays as it is."""
        for rule in self.rules:
            if matches(rule.pattern, name):
                return rule.scheme
        if (head and not self.head) or (self.experts_only and not expert):
            return None
        return self.scheme


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of an ignore list means this module: a part of its dotted path, or ``re:`` and an expression.

    ``*`` stands for anything, as in the lists of transformers.
    """
    return _compiled(pattern).search(name) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        return re.compile(rf"^(?:{pattern[3:]})")
    return re.compile(r"(?:^|\.)" + re.escape(pattern.strip(".")).replace(r"\*", ".*") + r"(?:$|\.)")


FP8 = Scheme(8, tensor=True, scale_bits=32, precision=Precision.FP8)
INT8 = Scheme(8, scale_bits=16, precision=Precision.INT8)
INT4 = Scheme(4, group=128, zero_bits=4, precision=Precision.INT4)

# What an operator may ask for by one word: vLLM turns weights into fp8 as it loads them; the others are the usual
# checkpoints, one scale an output or one for 128 inputs.
NAMED = {
    Precision.FP8: Quantization("fp8", FP8),
    Precision.INT8: Quantization("compressed-tensors", INT8),
    Precision.INT4: Quantization("awq", INT4),
}
