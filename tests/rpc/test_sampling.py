"""Every sampling field of the proto reaches vLLM, and what is left out is what the HTTP API would take."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from orchestrator.gateway.rpc_sampling import Defaults, plain, sampling_params
from orchestrator.proto import inference_pb2 as pb

DEFAULTS = Defaults(max_model_len=100, prompt_len=10)
PLAIN: dict[str, Any] = {
    "n": 3,
    "presence_penalty": 0.7,
    "frequency_penalty": -0.3,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 17,
    "min_p": 0.05,
    "seed": 2**40,
    "stop": ["END", "\n\n"],
    "stop_token_ids": [5, 6],
    "ignore_eos": True,
    "max_tokens": 33,
    "min_tokens": 4,
    "logprobs": 2,
    "prompt_logprobs": 1,
    "logprob_token_ids": [1, 2],
    "detokenize": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "logit_bias": {3: -1.5, 4: 2.0},
    "allowed_token_ids": [7, 8],
    "bad_words": ["foo"],
    "thinking_token_budget": 12,
    "skip_reading_prefix_cache": True,
    "stream_interval": 4,
    "watermarking": False,
    "prompt_logprob_start": 2,
    "trace_decode_token_ids": [9, 9, 9],
}
# What would change nothing in this API's answers, and what vLLM fills in itself.
NOT_OFFERED = {"flat_logprobs", "output_kind", "skip_clone", "routed_experts_prompt_start", "output_text_buffer_length"}


def test_the_proto_has_all_of_vllms_fields_and_no_others() -> None:
    vllms = {field.name for field in msgspec.structs.fields(SamplingParams) if not field.name.startswith("_")}
    ours = {
        "structured_outputs" if name == "structured" else name for name in pb.SamplingParams.DESCRIPTOR.fields_by_name
    }
    assert ours == vllms - NOT_OFFERED


@pytest.mark.parametrize("name", PLAIN)
def test_a_field_arrives_as_it_was_sent(name: str) -> None:
    params = sampling_params(pb.SamplingParams(**{name: PLAIN[name]}), DEFAULTS)
    assert getattr(params, name) == PLAIN[name]
    assert getattr(SamplingParams(), name) != PLAIN[name]


def test_no_field_goes_untested() -> None:
    structured = {"structured", "repetition_detection", "extra_args", "prompt_logprob_token_ids"}
    assert set(PLAIN) | structured == set(pb.SamplingParams.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("given_", "field", "value"),
    [
        (pb.StructuredOutput(json_schema='{"type": "object"}'), "json", '{"type": "object"}'),
        (pb.StructuredOutput(regex="a+"), "regex", "a+"),
        (pb.StructuredOutput(grammar='root ::= "a"'), "grammar", 'root ::= "a"'),
        (pb.StructuredOutput(choice=pb.Choice(options=["yes", "no"])), "choice", ["yes", "no"]),
        (pb.StructuredOutput(json_object=True), "json_object", True),
        (pb.StructuredOutput(structural_tag="{}"), "structural_tag", "{}"),
    ],
)
def test_a_constraint_arrives_alone(given_: pb.StructuredOutput, field: str, value: Any) -> None:
    structured = sampling_params(pb.SamplingParams(structured=given_), DEFAULTS).structured_outputs
    assert structured is not None
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    assert {kind: each for kind in kinds if (each := getattr(structured, kind)) is not None} == {field: value}


def test_a_constraints_options_arrive() -> None:
    given_ = pb.StructuredOutput(
        json_schema="{}", disable_any_whitespace=True, disable_additional_properties=True, whitespace_pattern="[ ]?"
    )
    structured = sampling_params(pb.SamplingParams(structured=given_), DEFAULTS).structured_outputs
    assert structured is not None
    assert structured.disable_any_whitespace
    assert structured.disable_additional_properties
    assert structured.whitespace_pattern == "[ ]?"


def test_repetition_extra_arguments_and_prompt_scores_arrive() -> None:
    given_ = pb.SamplingParams(
        repetition_detection=pb.RepetitionDetection(max_pattern_size=8, min_pattern_size=2, min_count=3),
        prompt_logprob_token_ids=[pb.PromptScores(ids=[1, 2]), pb.PromptScores(ids=[3, -1])],
    )
    given_.extra_args.update({"my_processor": {"strength": 2, "rate": 0.5, "on": True, "none": None, "list": [1]}})
    params = sampling_params(given_, DEFAULTS)

    found = params.repetition_detection
    assert found is not None
    assert (found.max_pattern_size, found.min_pattern_size, found.min_count) == (8, 2, 3)
    assert params.prompt_logprob_token_ids == [[1, 2], [3, -1]]
    assert params.extra_args == {"my_processor": {"strength": 2, "rate": 0.5, "on": True, "none": None, "list": [1]}}
    assert isinstance(params.extra_args["my_processor"]["strength"], int)


def test_deltas_are_asked_for() -> None:
    assert sampling_params(pb.SamplingParams(), DEFAULTS).output_kind is RequestOutputKind.DELTA


@pytest.mark.parametrize(
    ("asked", "model", "cap", "expected"),
    [(None, None, None, 90), (20, None, None, 20), (500, None, None, 90), (None, 50, None, 50), (40, 50, 30, 30)],
)
def test_output_length_is_the_least_of_what_was_asked_and_what_fits(
    asked: int | None, model: int | None, cap: int | None, expected: int
) -> None:
    sampling = {} if model is None else {"max_tokens": model}
    given_ = pb.SamplingParams() if asked is None else pb.SamplingParams(max_tokens=asked)
    params = sampling_params(given_, Defaults(100, 10, sampling, cap))
    assert params.max_tokens == expected


SHARED = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 4),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.1, 3),
        "temperature": st.floats(0.02, 2),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-1, 100),
        "min_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stop": st.lists(st.text(min_size=1, max_size=5), max_size=3),
        "stop_token_ids": st.lists(st.integers(0, 1000), max_size=3),
        "ignore_eos": st.booleans(),
        "max_tokens": st.integers(1, 200),
        "logprobs": st.integers(0, 5),
        "skip_special_tokens": st.booleans(),
        "spaces_between_special_tokens": st.booleans(),
        "include_stop_str_in_output": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(0, 1000), st.floats(-200, 200), min_size=1, max_size=3),
        "allowed_token_ids": st.lists(st.integers(0, 1000), min_size=1, max_size=3),
        "bad_words": st.lists(st.text(min_size=1, max_size=5), max_size=3),
        "stream_interval": st.integers(1, 9),
        "watermarking": st.booleans(),
    },
)
MODELS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.1, 1),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 50),
        "repetition_penalty": st.floats(1, 2),
        "stop_token_ids": st.lists(st.integers(0, 1000), min_size=1, max_size=2),
        "max_tokens": st.integers(1, 200),
    },
)


@given(fields=SHARED, model=MODELS)
def test_the_same_fields_mean_the_same_as_over_http(fields: dict[str, Any], model: dict[str, Any]) -> None:
    grpc_side = sampling_params(pb.SamplingParams(**fields), Defaults(100, 10, model))

    body = {"model": "m", "prompt": "x", "stream": True, "max_tokens": None, **fields}
    if "logit_bias" in body:  # JSON's keys are strings
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    http = CompletionRequest.model_validate(body).to_sampling_params(grpc_side.max_tokens or 0, dict(model))
    assert msgspec.structs.asdict(grpc_side) == msgspec.structs.asdict(http)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_struct_is_read_as_the_json_it_was_written_from(document: dict[str, Any]) -> None:
    read = plain(json_format.ParseDict(document, struct_pb2.Struct()))
    assert read == document
    assert all(not isinstance(value, float) or not value.is_integer() for value in read.values())
