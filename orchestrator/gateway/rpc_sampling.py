"""The proto's sampling fields as vLLM's SamplingParams, with the defaults that the HTTP API would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import struct_pb2
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from orchestrator.gateway.rpc_errors import BadField
from orchestrator.proto import inference_pb2 as pb

# What the OpenAI API says where neither the request nor the model says anything.
_NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
}
_AS_THEY_ARE = (
    "n",
    "seed",
    "ignore_eos",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "prompt_logprob_start",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "thinking_token_budget",
    "stream_interval",
    "watermarking",
)
_LISTS = ("stop", "stop_token_ids", "logprob_token_ids", "allowed_token_ids", "bad_words", "trace_decode_token_ids")
_CLUSTERS_OWN = ("kv_transfer_params", "ec_transfer_params")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model, its context length and its chat format say before the request does. Lengths in tokens."""

    max_model_len: int
    prompt_len: int
    sampling: Mapping[str, Any] = field(default_factory=dict)  # of the generation config
    max_tokens_cap: int | None = None
    skip_special_tokens: bool = True
    structured: StructuredOutputsParams | None = None


def sampling_params(given: pb.SamplingParams, defaults: Defaults) -> SamplingParams:
    """vLLM's parameters of one request, streaming deltas.

    Raises:
        VLLMValidationError, ValueError: vLLM refuses a value.
        BadField: a field is not a client's to set.
    """
    values: dict[str, Any] = {name: defaults.sampling.get(name, neutral) for name, neutral in _NEUTRAL.items()}
    values["skip_special_tokens"] = defaults.skip_special_tokens
    values |= {name: getattr(given, name) for name in (*_NEUTRAL, *_AS_THEY_ARE) if given.HasField(name)}
    values |= {name: list(items) for name in _LISTS if (items := getattr(given, name))}
    params = SamplingParams.from_optional(
        **values | _stop_token_ids(values, defaults),
        max_tokens=_max_tokens(given, defaults),
        logit_bias=dict(given.logit_bias) or None,
        prompt_logprob_token_ids=[list(row.ids) for row in given.prompt_logprob_token_ids] or None,
        structured_outputs=_structured(given) or defaults.structured,
        repetition_detection=_repetition(given),
        extra_args=_extra_args(given),
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )
    if given.HasField("skip_reading_prefix_cache"):
        params.skip_reading_prefix_cache = given.skip_reading_prefix_cache
    return params


def _stop_token_ids(values: Mapping[str, Any], defaults: Defaults) -> dict[str, list[int]]:
    both = [*values.get("stop_token_ids", ()), *(defaults.sampling.get("stop_token_ids") or ())]
    return {"stop_token_ids": list(dict.fromkeys(both))} if both else {}


def _max_tokens(given: pb.SamplingParams, defaults: Defaults) -> int:
    return get_max_tokens(
        defaults.max_model_len,
        given.max_tokens if given.HasField("max_tokens") else None,
        defaults.prompt_len,
        dict(defaults.sampling),
        defaults.max_tokens_cap,
    )


def _structured(given: pb.SamplingParams) -> StructuredOutputsParams | None:
    if not given.HasField("structured"):
        return None
    asked = given.structured
    kind = asked.WhichOneof("constraint")
    if kind is None or (kind == "json_object" and not asked.json_object):
        raise BadField("needs one constraint", where="sampling.structured")
    value: Any = list(asked.choice.options) if kind == "choice" else getattr(asked, kind)
    return StructuredOutputsParams(
        **{"json" if kind == "json_schema" else kind: value},
        disable_any_whitespace=asked.disable_any_whitespace,
        disable_additional_properties=asked.disable_additional_properties,
        whitespace_pattern=asked.whitespace_pattern if asked.HasField("whitespace_pattern") else None,
    )


def _repetition(given: pb.SamplingParams) -> RepetitionDetectionParams | None:
    if not given.HasField("repetition_detection"):
        return None
    asked = given.repetition_detection
    return RepetitionDetectionParams(
        max_pattern_size=asked.max_pattern_size,
        min_pattern_size=asked.min_pattern_size,
        min_count=asked.min_count,
    )


def _extra_args(given: pb.SamplingParams) -> dict[str, Any] | None:
    if not given.HasField("extra_args"):
        return None
    extra = plain(given.extra_args)
    for name in extra:
        if name in _CLUSTERS_OWN or name.startswith("segue_"):
            raise BadField("is the cluster's own to set", where=f"sampling.extra_args.{name}")
    return extra


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as JSON would have brought it: numbers without a fraction are integers, and keys have an order."""
    return {name: _plain(struct.fields[name]) for name in sorted(struct.fields)}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)
