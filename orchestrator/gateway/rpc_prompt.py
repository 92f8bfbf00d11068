"""A request's prompt as an engine input: rendered and tokenized by vLLM's own code, as over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.sampling_params import StructuredOutputsParams

from orchestrator.core.errors import InvalidRequest, Unsupported
from orchestrator.gateway.ports import ModelFront
from orchestrator.gateway.rpc_errors import BadField
from orchestrator.gateway.rpc_sampling import Defaults, plain
from orchestrator.proto import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the engine reads, and what the model's chat format asks of sampling and of the engine."""

    engine_input: Any  # vllm.inputs.EngineInput
    defaults: Defaults
    engine_options: Mapping[str, Any] = field(default_factory=dict)


async def render(front: ModelFront, request: pb.GenerateRequest) -> Rendered:
    """Renders whichever form of prompt the request has.

    Raises:
        Unsupported: the model does not generate.
        InvalidRequest, ValueError, VLLMClientError: the prompt is missing, malformed or too long.
    """
    if "generate" not in front.tasks:
        raise Unsupported("the model does not generate", where=front.name, hint=f"it can: {', '.join(front.tasks)}")
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return await _chat(front, request)
    if kind == "text":
        return await _completion(front, request, request.text)
    if kind == "token_ids" and request.token_ids.ids:
        return await _completion(front, request, list(request.token_ids.ids))
    raise BadField("needs one of text, token_ids and chat, not empty", where="prompt")


async def _completion(front: ModelFront, request: pb.GenerateRequest, prompt: str | list[int]) -> Rendered:
    asked = CompletionRequest.model_validate(
        {"model": front.name, "prompt": prompt, "max_tokens": _max_tokens(request)}
    )
    (engine_input,) = _checked(await front.state.online_renderer.render_completion(asked))
    return Rendered(engine_input, _defaults(front, front.state.openai_serving_completion, engine_input))


async def _chat(front: ModelFront, request: pb.GenerateRequest) -> Rendered:
    renderer = front.state.online_renderer
    tools = _objects(request.chat.tools, "chat.tools")
    asked = ChatCompletionRequest.model_validate(
        {
            "model": front.name,
            "messages": [_message(message, i) for i, message in enumerate(request.chat.messages)],
            "max_completion_tokens": _max_tokens(request),
            "chat_template_kwargs": plain(request.chat.template_kwargs) or None,
            **({"tools": tools} if tools else {}),
        }
    )
    if tools and not renderer.enable_auto_tools and not renderer.use_harmony:
        engine_input = await _with_unparsed_tools(renderer, asked)
    else:
        _, (engine_input,) = _checked(await renderer.render_chat(asked))
    serving = front.state.openai_serving_chat
    defaults = _defaults(
        front,
        serving,
        engine_input,
        # The model's tool or reasoning format may have changed these on its way through the renderer.
        skip_special_tokens=asked.skip_special_tokens,
        structured=asked.extract_structured_outputs(),
    )
    return Rendered(engine_input, defaults, _reasoning(serving, asked, engine_input))


async def _with_unparsed_tools(renderer: Any, asked: ChatCompletionRequest) -> Any:
    """Tools for the template alone: HTTP would want a parser for the answer, which here is the caller's business."""
    refused = renderer.validate_chat_template(None, asked.chat_template_kwargs, renderer.trust_request_chat_template)
    if refused is not None:
        _checked(refused)
    _, (engine_input,) = await renderer.preprocess_chat(
        asked,
        asked.messages,
        default_template=renderer.chat_template,
        default_template_content_format=renderer.chat_template_content_format,
        default_template_kwargs=renderer.default_chat_template_kwargs,
        tool_dicts=[tool.model_dump() for tool in asked.tools or ()],
    )
    return engine_input


def _message(message: pb.ChatMessage, position: int) -> dict[str, Any]:
    optional = {"tool_call_id": message.tool_call_id, "name": message.name}
    calls = _objects(message.tool_calls, f"chat.messages[{position}].tool_calls")
    return {
        "role": message.role,
        # OpenAI's form of a message that only calls tools has no content at all.
        "content": None if calls and not message.content else message.content,
        **{name: value for name, value in optional.items() if value},
        **({"tool_calls": calls} if calls else {}),
    }


def _objects(texts: Sequence[str], where: str) -> list[dict[str, Any]]:
    return [_object(text, f"{where}[{i}]") for i, text in enumerate(texts)]


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadField("is no JSON", where=where) from None
    if not isinstance(value, dict):
        raise BadField("is no JSON object", where=where)
    return value


def _reasoning(serving: Any, asked: ChatCompletionRequest, engine_input: Any) -> Mapping[str, Any]:
    """How the engine tells a model's thinking from its answer, where it has a parser for that."""
    if serving.parser_cls is None:
        return {}
    template_kwargs = serving._effective_chat_template_kwargs(asked)
    parser = serving._make_parser(asked, serving.renderer.tokenizer, template_kwargs)
    options: Mapping[str, Any] = serving._engine_reasoning_kwargs(
        asked, parser, template_kwargs, engine_input.get("prompt_token_ids")
    )
    return options


def _defaults(
    front: ModelFront,
    serving: Any,
    engine_input: Any,
    skip_special_tokens: bool = True,
    structured: StructuredOutputsParams | None = None,
) -> Defaults:
    return Defaults(
        max_model_len=front.max_model_len,
        prompt_len=len(engine_input["prompt_token_ids"]),
        sampling=serving.default_sampling_params,
        max_tokens_cap=serving.override_max_tokens,
        skip_special_tokens=skip_special_tokens,
        structured=structured,
    )


def _max_tokens(request: pb.GenerateRequest) -> int | None:
    return request.sampling.max_tokens if request.sampling.HasField("max_tokens") else None


def _checked(rendered: Any) -> Any:
    if isinstance(rendered, ErrorResponse):
        raise InvalidRequest(rendered.error.message.rstrip("."), where=rendered.error.param or "")
    return rendered
