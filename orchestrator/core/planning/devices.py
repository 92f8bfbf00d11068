"""What a device can do, as its vendor states it or as it was measured; ``orchestrator/planning`` has the data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.errors import ConfigError
from orchestrator.core.spec import Device


class Precision(StrEnum):
    """What numbers are computed or kept in, spelled as a model's config.json spells its data types."""

    FP32 = "float32"
    BF16 = "bfloat16"
    FP16 = "float16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


# Where a device has no units for a precision its numbers are turned into one of these first; a fast one is preferred.
WIDER = {
    Precision.FP32: (),
    Precision.BF16: (Precision.FP16, Precision.FP32),
    Precision.FP16: (Precision.BF16, Precision.FP32),
    Precision.FP8: (Precision.BF16, Precision.FP16, Precision.FP32),
    Precision.INT8: (Precision.BF16, Precision.FP16, Precision.FP32),
    Precision.INT4: (Precision.BF16, Precision.FP16, Precision.FP32),
}


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """One kind of device. All rates are peaks of one device; what is reached in practice is less."""

    name: str
    maker: str
    kind: Device
    memory_bytes: int  # that a process can have: of GPUs what CUDA and ROCm report as total, below the data sheet's
    memory_bandwidth: float  # bytes/s
    flops: Mapping[Precision, float]  # dense FLOP/s, of integers OP/s; only what the device has units for
    link_bandwidth: float  # bytes/s, one direction, of one device to all its peers in the node
    link: str
    network_bandwidth: float  # bytes/s, one direction, of one device's part of its node's network
    usd_per_hour: float
    watts: float
    aliases: tuple[str, ...] = ()

    def compute(self, precision: Precision) -> float:
        """Dense FLOP/s with numbers of this precision; where the device has no units for it, those of a wider one."""
        for each in (precision, *WIDER[precision]):
            if each in self.flops:
                return self.flops[each]
        raise ConfigError(
            f"{self.name} has no rate for {precision} nor for anything wider", hint="give it tflops: {float32: ...}"
        )


class Catalogue:
    """Kinds of devices by name or alias; upper and lower case, blanks, ``-`` and ``_`` make no difference."""

    def __init__(self, kinds: Iterable[DeviceKind], where: str = "") -> None:
        """ConfigError, at ``where``, if two kinds go by one name."""
        self._kinds = tuple(kinds)
        self._by_word: dict[str, DeviceKind] = {}
        for kind in self._kinds:
            for word in (kind.name, *kind.aliases):
                other = self._by_word.setdefault(plain(word), kind)
                if other is not kind:
                    raise ConfigError(f"both {other.name} and {kind.name} go by the name {word!r}", where=where)

    def __iter__(self) -> Iterator[DeviceKind]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, word: str) -> bool:
        return plain(word) in self._by_word

    def extended(self, kinds: Iterable[DeviceKind], where: str = "") -> Catalogue:
        """These too; one that has the name of a kind that is there already takes its place."""
        merged = {kind.name: kind for kind in self._kinds} | {kind.name: kind for kind in kinds}
        return Catalogue(merged.values(), where)

    def find(self, word: str, where: str = "") -> DeviceKind:
        """The kind that goes by this word; ConfigError with all that are known where there is none."""
        kind = self._by_word.get(plain(word))
        if kind is None:
            names = [each.name for each in self._kinds]
            near = difflib.get_close_matches(plain(word), list(self._by_word), n=1, cutoff=0.7)
            guess = f"did you mean {self._by_word[near[0]].name}? Or " if near else ""
            raise ConfigError(
                f"unknown device {word!r}, known: {', '.join(names)}",
                where=where,
                hint=f"{guess}describe it under devices: in the inventory file",
            )
        return kind


def plain(word: str) -> str:
    """A name as far as it counts."""
    return "".join(letter for letter in word.casefold() if letter not in " -_")
