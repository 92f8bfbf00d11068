"""A config.json's ``quantization_config`` as a ``Quantization``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.devices import Precision
from orchestrator.core.planning.fields import Fields
from orchestrator.core.planning.quantization import FP8, Quantization, Rule, Scheme

MXFP4_GROUP, NVFP4_GROUP = 32, 16
PRECISIONS = {8: Precision.INT8, 4: Precision.INT4}


def quantization_of(fields: Fields | None) -> Quantization | None:
    """What the checkpoint says of its quantization; None without any. ConfigError for a format not known here."""
    if fields is None:
        return None
    method = str(fields.get("quant_method") or _unnamed(fields)).lower().replace("_", "-")
    reader = READERS.get(method)
    if reader is None:
        raise ConfigError(
            f"unknown quantization {method!r}, known: {', '.join(sorted(READERS))}",
            where=fields.where,
            hint="its weights can't be sized from config.json",
        )
    return reader(fields)


def _unnamed(fields: Fields) -> str:
    """ModelOpt's older files have no quant_method."""
    return "modelopt" if fields.get("quantization", "quant_algo") is not None else ""


def _whole(bits: int, fields: Fields) -> int:
    if bits not in (2, 3, 4, 8):
        raise ConfigError(f"weights of {bits} bits are not known", where=fields.where)
    return bits


def _group(fields: Fields, *names: str) -> int:
    """Inputs that share a scale; 0 where a whole output does, which files write as -1 or null."""
    value = fields.get(*names)
    if value is None or value == -1:
        return 0
    return fields.integer(*names)


def _left(patterns: Iterable[str]) -> tuple[Rule, ...]:
    return tuple(Rule(pattern) for pattern in patterns)


def _gptq(fields: Fields) -> Quantization:
    bits, group = _whole(fields.integer("bits", default=4), fields), _group(fields, "group_size")
    head, base = fields.flag("lm_head"), _gptq_scheme(bits, group)
    rules = []
    dynamic = fields.inner("dynamic")
    for pattern, change in (dynamic.items() if dynamic else {}).items():
        if pattern.startswith("-:"):
            rules.append(Rule(f"re:{pattern[2:]}"))
        elif isinstance(change, dict):
            own = _whole(int(change.get("bits", bits)), fields)
            scheme = _gptq_scheme(own, max(0, int(change.get("group_size", group))))
            rules.append(Rule(f"re:{pattern.removeprefix('+:')}", scheme))
    inside = fields.get("modules_in_block_to_quantize")
    if not inside:
        return Quantization("gptq", base, tuple(rules), head)
    names = [name for each in inside for name in (each if isinstance(each, list) else [each])]
    return Quantization("gptq", None, (*rules, *(Rule(str(name), base) for name in names)), head)


def _gptq_scheme(bits: int, group: int) -> Scheme:
    return Scheme(bits, group, zero_bits=bits, index=True, precision=PRECISIONS.get(bits, Precision.INT4))


def _awq(fields: Fields) -> Quantization:
    bits = _whole(fields.integer("bits", "w_bit", default=4), fields)
    zero = bits if fields.flag("zero_point", default=True) else 0
    precision = PRECISIONS.get(bits, Precision.INT4)
    scheme = Scheme(bits, _group(fields, "group_size", "q_group_size"), zero_bits=zero, precision=precision)
    return Quantization("awq", scheme, _left(fields.words("modules_to_not_convert")))


def _fp8(fields: Fields) -> Quantization:
    scheme = FP8
    block = fields.get("weight_block_size")
    if block:
        scheme = Scheme(8, block=(int(block[0]), int(block[1])), scale_bits=32, precision=Precision.FP8)
    left = fields.words("modules_to_not_convert") + fields.words("ignored_layers")
    return Quantization("fp8", scheme, _left(left), kv=_kv(fields))


def _fbgemm(fields: Fields) -> Quantization:
    scheme = Scheme(8, scale_bits=32, precision=Precision.FP8)
    return Quantization("fbgemm-fp8", scheme, _left(fields.words("modules_to_not_convert")))


def _bitsandbytes(fields: Fields) -> Quantization:
    rules = _left(fields.words("llm_int8_skip_modules"))
    if fields.flag("load_in_4bit", "_load_in_4bit"):
        scale = 8 + 32 / 256 if fields.flag("bnb_4bit_use_double_quant") else 32
        return Quantization("bitsandbytes", Scheme(4, 64, scale_bits=scale), rules)
    return Quantization("bitsandbytes", Scheme(8, scale_bits=32, precision=Precision.INT8), rules)


def _mxfp4(fields: Fields) -> Quantization:
    # Its list of what is left alone names all but the experts, for which alone the format is meant.
    rules = tuple(rule for rule in _left(fields.words("modules_to_not_convert")) if "expert" in rule.pattern)
    return Quantization("mxfp4", Scheme(4, MXFP4_GROUP, scale_bits=8, mends=True), rules, experts_only=True)


def _modelopt(fields: Fields) -> Quantization:
    inner = fields.inner("quantization") or fields
    algorithm = str(inner.get("quant_algo") or "").upper()
    rules = _left(inner.words("exclude_modules", "ignore"))
    kv = Precision.FP8 if str(inner.get("kv_cache_quant_algo") or "").upper() == "FP8" else _kv(inner)
    if algorithm == "NVFP4":
        return Quantization("modelopt", Scheme(4, NVFP4_GROUP, scale_bits=8), rules, kv=kv)
    if algorithm == "FP8":
        return Quantization("modelopt", FP8, rules, kv=kv)
    raise ConfigError(f"unknown ModelOpt algorithm {algorithm!r}, known: FP8, NVFP4", where=fields.where)


def _compressed(fields: Fields) -> Quantization:
    rules = list(_left(fields.words("ignore")))
    groups = fields.inner("config_groups")
    if groups is None:
        raise ConfigError("no config_groups", where=fields.where, hint="compressed-tensors has its formats in there")
    default: Scheme | None = None
    for name in groups.items():
        group = groups.inner(name)
        weights = group.inner("weights") if group else None
        scheme = _compressed_scheme(weights) if weights else None
        for target in group.words("targets") if group else ():
            if target == "Linear":
                default = scheme
            else:
                rules.append(Rule(target, scheme))
    return Quantization("compressed-tensors", default, tuple(rules), kv=_kv(fields))


def _compressed_scheme(weights: Fields) -> Scheme:
    bits = _whole(weights.integer("num_bits", default=8), weights)
    floating = weights.get("type") == "float"
    zero = bits if not weights.flag("symmetric", default=True) else 0
    precision = Precision.FP8 if floating and bits == 8 else PRECISIONS.get(bits, Precision.INT4)
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    scale = 8 if floating and bits == 4 else 16
    if strategy == "block":
        block = weights.get("block_structure") or (128, 128)
        return Scheme(bits, block=(int(block[0]), int(block[1])), scale_bits=scale, precision=precision)
    if strategy in ("group", "tensor_group"):
        index = weights.get("actorder") in ("group", True)
        return Scheme(bits, _group(weights, "group_size"), None, False, scale, zero, index, precision)
    if strategy in ("channel", "tensor"):
        return Scheme(bits, tensor=strategy == "tensor", scale_bits=scale, zero_bits=zero, precision=precision)
    raise ConfigError(f"unknown strategy {strategy!r}, known: tensor, channel, group, block", where=weights.where)


def _kv(fields: Fields) -> Precision | None:
    if isinstance(named := fields.get("kv_cache_scheme"), str):
        return Precision.FP8 if named.lower().startswith("fp8") else None
    scheme = fields.inner("kv_cache_scheme")
    return Precision.FP8 if scheme and scheme.integer("num_bits", default=16) == 8 else None


READERS: dict[str, Callable[[Fields], Quantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
}
