"""Engine and front-end arguments are vLLM's own, less what Segue sets, and the list of them is not out of date."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from orchestrator.config import arguments, bounds
from orchestrator.config.owned import ENGINE_INSTEAD, FRONTEND_ALLOWED, FRONTEND_INSTEAD, MOCK_FIELDS
from orchestrator.core.spec import Role
from workers.mock_settings import MockSettings

from .conftest import LOCAL

ENGINE_LINE = "engine: {dtype: float32}"


def test_the_list_is_the_installed_vllms():
    """If vLLM moved: python -m orchestrator.config.vllm_fields --write, and read the diff."""
    command = [sys.executable, "-m", "orchestrator.config.vllm_fields", "--check"]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_segue_owns_and_allows_are_arguments_that_vllm_has():
    engine, frontend = set(arguments.known("engine")), set(arguments.known("frontend"))
    assert set(ENGINE_INSTEAD) <= engine
    assert set(FRONTEND_ALLOWED) <= frontend
    assert not set(FRONTEND_ALLOWED) & set(FRONTEND_INSTEAD)
    assert set(FRONTEND_INSTEAD) - frontend == {"reasoning_parser", "reasoning_parser_plugin"} <= engine


def test_a_mocks_arguments_are_the_mocks_own():
    kinds = {
        field.name: arguments.SCALAR_TYPES[MOCK_FIELDS[field.name][0]] for field in dataclasses.fields(MockSettings)
    }
    assert kinds == {
        field.name: type(getattr(MockSettings(), field.name)) for field in dataclasses.fields(MockSettings)
    }
    assert set(MOCK_FIELDS) == set(kinds)


def test_bounds_are_of_numbers_that_may_be_set():
    allowed = {"engine": set(arguments.known("engine")) - set(ENGINE_INSTEAD), "frontend": set(FRONTEND_ALLOWED)}
    for section, bound in {"engine": bounds.ENGINE, "frontend": bounds.FRONTEND}.items():
        assert set(bound) <= allowed[section]
        assert all({"int", "float"} & set(arguments.known(section)[name]) for name in bound)
    assert set(bounds.MOCK) == set(MOCK_FIELDS) - {"enable_prefix_caching", "restores"}
    assert all(bound.holds(getattr(MockSettings(), name)) for name, bound in bounds.MOCK.items())


GOOD = {
    "choice": "dtype: bfloat16",
    "whole number": "max_model_len: 4096",
    "number": "gpu_memory_utilization: 0.5",
    "whole number for a number": "gpu_memory_utilization: 1",
    "truth": "enforce_eager: false",
    "null for what may be null": "kv_cache_memory_bytes: null",
    "text of no list": "load_format: my_own",
    "list": "logits_processors: [my.module:Class]",
    "mapping of anything": "hf_overrides: {rope: {type: yarn, factor: 4.0}}",
    "object": "compilation_config: {mode: 3, cudagraph_capture_sizes: [1, 2]}",
    "enum by name": "attention_backend: FLASH_ATTN",
    "object in an object": "structured_outputs_config: {backend: xgrammar}",
    "list or text": "ignore_patterns: [a, b]",
    "reasoning": "reasoning_parser: qwen3",
    "as much as fits": "max_model_len: -1",
    "all of a share": "gpu_memory_utilization: 1.0",
    "the least memory": "kv_cache_memory_bytes: 1048576",
    "nothing where that is possible": "cpu_offload_gb: 0",
}


@pytest.mark.parametrize("argument", GOOD.values(), ids=GOOD)
def test_what_vllm_takes_is_taken(load, argument):
    name = argument.partition(":")[0]
    assert name in load(LOCAL.replace(ENGINE_LINE, f"engine: {{{argument}}}")).model("smollm2").engine


BAD = {
    "dtype: float31": 'engine.dtype: found "float31", allowed: auto, half, float16, bfloat16, float, float32 (did you',
    "max_model_len: '2048'": 'engine.max_model_len: found "2048", allowed: a whole number',
    "max_model_len: 2048.5": "engine.max_model_len: found 2048.5, allowed: a whole number",
    "max_num_seqs: yes": "engine.max_num_seqs: found true, allowed: a whole number or null",
    "enforce_eager: 1": "engine.enforce_eager: found 1, allowed: true or false",
    "gpu_memory_utilization: .nan": "engine.gpu_memory_utilization: found nan, allowed: a number",
    "seed: null": "engine.seed: found nothing, allowed: a whole number",
    "max_modle_len: 1": "engine.max_modle_len: unknown key 'max_modle_len', allowed: a vLLM engine argument "
    "(AsyncEngineArgs) (did you mean max_model_len?)",
    "max_model_len: 0": "engine.max_model_len: found 0, allowed: 1 or more, or -1 for as much as fits",
    "max_model_len: -2": "engine.max_model_len: found -2, allowed: 1 or more, or -1 for as much as fits",
    "max_num_seqs: 0": "engine.max_num_seqs: found 0, allowed: 1 or more",
    "block_size: 0": "engine.block_size: found 0, allowed: 1 or more",
    "max_num_batched_tokens: -1": "engine.max_num_batched_tokens: found -1, allowed: 1 or more",
    "kv_cache_memory_bytes: 1048575": "found 1048575, allowed: 1048576 (1 MiB) or more",
    "gpu_memory_utilization: 0": "engine.gpu_memory_utilization: found 0, allowed: a number above 0, at most 1",
    "gpu_memory_utilization: 1.5": "engine.gpu_memory_utilization: found 1.5, allowed: a number above 0, at most 1",
    "cpu_offload_gb: -1": "engine.cpu_offload_gb: found -1, allowed: 0 or more",
    "watermark: 1": "engine.watermark: found 1, allowed: a number from 0, below 1",
    "reasoning_parser: qwen33": "(did you mean qwen3?)",
    "max_lora_rank: 9": "engine.max_lora_rank: found 9, allowed: 1, 8, 16",
    "logits_processors: my.module": 'engine.logits_processors: found "my.module", allowed: a list (text) or null',
    "logits_processors: [1]": "engine.logits_processors[0]: found 1, allowed: text",
    "hf_overrides: {when: 2026-01-01}": "engine.hf_overrides.when: found 2026-01-01, allowed: text, a finite number",
    "hf_overrides: {1: a}": "engine.hf_overrides: found the key 1, allowed: words as keys",
    "hf_overrides: 5": "engine.hf_overrides: found 5, allowed: a mapping (any value)",
    "limit_mm_per_prompt: {image: many}": 'image: found "many", allowed: a whole number or a mapping (a whole number)',
    "compilation_config: {mod: 3}": "engine.compilation_config.mod: unknown key 'mod', allowed: mode, ",
    "structured_outputs_config: {backend: xgramar}": "(did you mean xgrammar?)",
}


@pytest.mark.parametrize("argument", BAD)
def test_what_vllm_would_choke_on_is_refused(refused_change, argument):
    message = refused_change(ENGINE_LINE, f"engine: {{{argument}}}")
    assert message.startswith("cluster.yaml:5: models[0].engine")
    assert BAD[argument] in message


@pytest.mark.parametrize("name", ENGINE_INSTEAD)
def test_what_segue_owns_is_refused_with_what_to_use(refused_change, name):
    message = refused_change(ENGINE_LINE, f"engine: {{{name}: 1}}")
    assert f"engine.{name}: {name} is Segue's to set, allowed: " in message
    assert message.endswith(f"({ENGINE_INSTEAD[name]})")


def test_a_pools_own_arguments_are_checked_too(refused_change):
    message = refused_change("replicas: 2", "engine: {tensor_parallel_size: 2}")
    assert message.startswith("cluster.yaml:10: models[0].pools.decode.engine.tensor_parallel_size: ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("{host: 0.0.0.0}", "frontend.host: host is Segue's to set, allowed: chat_template, "),
        ("{api_key: [a]}", "(it belongs to the gateway, not to a model)"),
        ("{reasoning_parser: qwen3}", "(it is an engine argument in vLLM: write it under engine)"),
        ("{enable_log_outputs: true}", "(prompts and completions are never logged)"),
        ("{chat_templat: a}", "(did you mean chat_template?)"),
        ("{tool_call_parser: herms}", "(did you mean hermes?)"),
        ("{sse_keep_alive_interval: -1}", "frontend.sse_keep_alive_interval: found -1, allowed: 0 or more"),
        ("{enable_auto_tool_choice: true}", "found enable_auto_tool_choice without tool_call_parser, allowed: both"),
        ("{fingerprint_mode: custom}", "allowed: both or neither"),
    ],
)
def test_front_end_options_are_those_that_one_model_can_have(refusal, options, told):
    assert told in refusal(LOCAL + f"    frontend: {options}\n")


def test_a_mock_takes_its_own_arguments_and_no_engines(load, refusal):
    mock = LOCAL.replace("replicas: 1", "backend: mock").replace("replicas: 2", "backend: mock")
    spec = load(mock.replace(ENGINE_LINE, "engine: {step_seconds: 1, kv_blocks: 9}"))
    assert spec.model("smollm2").pools[Role.DECODE].backend == "mock"
    assert "engine.dtype: unknown key 'dtype', allowed: prefill_tokens_per_second, " in refusal(mock)
    assert "found 0.5, allowed: a whole number" in refusal(mock.replace(ENGINE_LINE, "engine: {kv_blocks: 0.5}"))
    assert "engine.kv_blocks: found 0, allowed: 1 or more" in refusal(
        mock.replace(ENGINE_LINE, "engine: {kv_blocks: 0}")
    )
    stuck = mock.replace(ENGINE_LINE, "engine: {prefill_tokens_per_second: 0}")
    assert "engine.prefill_tokens_per_second: found 0, allowed: a number above 0" in refusal(stuck)
