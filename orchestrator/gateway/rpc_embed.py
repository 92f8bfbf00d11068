"""Embeddings: each text is a pooling request of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.pooling_params import PoolingParams
from vllm.renderers.inputs.preprocess import parse_model_prompt

from orchestrator.core.errors import SegueError, Unsupported
from orchestrator.gateway.ports import ModelFront
from orchestrator.gateway.rpc_errors import BadField, reading_request
from orchestrator.proto import inference_pb2 as pb

MAX_TEXTS = 2048


async def embed(front: ModelFront, request: pb.EmbedRequest, request_id: str) -> pb.EmbedResponse:
    """Embeds all texts of a request at once.

    Raises:
        Unsupported: the model has no embeddings.
        SegueError, VLLMClientError: a text is too long, dimensions don't fit ...
    """
    if "embed" not in front.tasks:
        raise Unsupported("the model has no embeddings", where=front.name, hint=f"it can: {', '.join(front.tasks)}")
    if not 0 < len(request.texts) <= MAX_TEXTS:
        raise BadField(f"1 to {MAX_TEXTS} texts, got {len(request.texts)}", where="texts")
    with reading_request():
        engine_inputs = await _render(front, list(request.texts))
    try:
        async with asyncio.TaskGroup() as group:
            params = [_params(request) for _ in engine_inputs]
            tasks = [
                group.create_task(_one(front, each, params[i], f"{request_id}-{i}"))
                for i, each in enumerate(engine_inputs)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    outputs = [task.result() for task in tasks]
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=output.outputs.data.tolist()) for output in outputs],
        usage=pb.Usage(prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs)),
    )


async def _render(front: ModelFront, texts: list[str]) -> list[Any]:
    config = front.llm.model_config
    asked = EmbeddingCompletionRequest(model=front.name, input=texts)
    prompts = [parse_model_prompt(config, text) for text in texts]
    rendered: list[Any] = await front.llm.renderer.render_cmpl_async(prompts, asked.build_tok_params(config))
    return rendered


def _params(request: pb.EmbedRequest) -> PoolingParams:
    return PoolingParams(task="embed", dimensions=request.dimensions if request.HasField("dimensions") else None)


async def _one(front: ModelFront, engine_input: Any, params: PoolingParams, request_id: str) -> Any:
    final = None
    async for output in front.llm.encode(engine_input, params, request_id):
        final = output
    if final is None:
        raise SegueError("the engine ended the request without an embedding", where=request_id)
    return final
