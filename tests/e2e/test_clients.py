"""The official clients, unmodified, against real engines."""

from __future__ import annotations

import json

import openai
import pytest

from tests.e2e.conftest import APART, EMBEDDER, OTHER, TOGETHER, RealCluster
from tests.rpc.client import generate_by_reflection

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(180)]

GREEDY = {"temperature": 0}  # a field that this client has no argument for
ASK = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


class TestOpenAI:
    def test_chat_knows_real_text(self, cluster: RealCluster) -> None:
        answer = cluster.openai.chat.completions.create(model=APART, messages=ASK, max_tokens=20, temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"

    def test_stream_with_usage_equals_the_whole(self, cluster: RealCluster) -> None:
        kwargs = {"model": APART, "messages": ASK, "max_tokens": 20, "temperature": 0}
        whole = cluster.openai.chat.completions.create(**kwargs)
        text, usage = "", None
        for chunk in cluster.openai.chat.completions.create(
            **kwargs, stream=True, stream_options={"include_usage": True}
        ):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
        assert text == whole.choices[0].message.content
        assert usage is not None
        assert whole.usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (
            whole.usage.prompt_tokens,
            whole.usage.completion_tokens,
        )

    def test_tool_call_fits_its_schema(self, cluster: RealCluster) -> None:
        function = {"name": "get_weather", "description": "Weather in a city", "parameters": CITY}
        answer = cluster.openai.chat.completions.create(
            model=APART,
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[{"type": "function", "function": function}],
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            max_tokens=60,
            temperature=0,
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city"}

    def test_structured_output_is_valid(self, cluster: RealCluster) -> None:
        answer = cluster.openai.chat.completions.create(
            model=APART,
            messages=[{"role": "user", "content": "Describe a person as JSON."}],
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
            max_tokens=80,
            temperature=0,
        )
        person = json.loads(answer.choices[0].message.content or "")
        assert set(person) == {"name", "age"}
        assert 1 <= person["age"] <= 99

    def test_logprobs_cover_every_token(self, cluster: RealCluster) -> None:
        answer = cluster.openai.chat.completions.create(
            model=APART, messages=ASK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
        )
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content or []
        assert len(content) == 5
        # Greedy: the chosen token is the likeliest.
        assert all(token.logprob == max(top.logprob for top in token.top_logprobs) for token in content)

    def test_two_sequences(self, cluster: RealCluster) -> None:
        answer = cluster.openai.chat.completions.create(model=APART, messages=ASK, max_tokens=8, n=2, temperature=0.9)
        assert [choice.index for choice in answer.choices] == [0, 1]

    def test_stop_string_ends_the_text_before_it(self, cluster: RealCluster) -> None:
        kwargs = {"model": APART, "messages": ASK, "max_tokens": 30, "temperature": 0}
        whole = cluster.openai.chat.completions.create(**kwargs).choices[0].message.content or ""
        cut = cluster.openai.chat.completions.create(**kwargs, stop=["France"]).choices[0]
        assert cut.finish_reason == "stop"
        assert cut.message.content == whole.split("France")[0]

    def test_responses_api(self, cluster: RealCluster) -> None:
        response = cluster.openai.responses.create(model=APART, input="Say hello.", max_output_tokens=24)
        assert response.output_text

    def test_embeddings_where_the_model_can(self, cluster: RealCluster) -> None:
        texts = ["a cat sat on the mat", "a kitten lay on the rug", "quarterly revenue fell"]
        vectors = [row.embedding for row in cluster.openai.embeddings.create(model=EMBEDDER, input=texts).data]

        def cosine(a: list[float], b: list[float]) -> float:
            return sum(x * y for x, y in zip(a, b, strict=True))

        assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.2
        with pytest.raises(openai.BadRequestError):
            cluster.openai.embeddings.create(model=APART, input="hi")

    def test_typed_refusals(self, cluster: RealCluster) -> None:
        with pytest.raises(openai.NotFoundError):
            cluster.openai.chat.completions.create(model="nope", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="1024"):
            cluster.openai.completions.create(model=APART, prompt="word " * 2000)


class TestAnthropic:
    def test_messages(self, cluster: RealCluster) -> None:
        message = cluster.anthropic.messages.create(model=APART, max_tokens=20, messages=ASK, extra_body=GREEDY)
        assert message.content[0].type == "text"
        assert "Paris" in message.content[0].text
        assert message.stop_reason == "end_turn"
        assert message.usage.output_tokens > 0

    def test_stream(self, cluster: RealCluster) -> None:
        with cluster.anthropic.messages.stream(model=APART, max_tokens=20, messages=ASK, extra_body=GREEDY) as stream:
            assert "Paris" in "".join(stream.text_stream)

    def test_stop_sequence(self, cluster: RealCluster) -> None:
        message = cluster.anthropic.messages.create(
            model=APART, max_tokens=30, messages=ASK, stop_sequences=["France"], extra_body=GREEDY
        )
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "France")
        assert message.content[0].type == "text"
        assert "France" not in message.content[0].text

    def test_tools(self, cluster: RealCluster) -> None:
        message = cluster.anthropic.messages.create(
            model=APART,
            max_tokens=80,
            extra_body=GREEDY,
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[{"name": "get_weather", "description": "Weather in a city", "input_schema": CITY}],
            tool_choice={"type": "tool", "name": "get_weather"},
        )
        (use,) = [block for block in message.content if block.type == "tool_use"]
        assert use.name == "get_weather"
        assert set(use.input) == {"city"}  # type: ignore[call-overload]


def test_each_model_answers_as_itself(cluster: RealCluster) -> None:
    def say(model: str) -> str:
        answer = cluster.openai.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0
        )
        assert answer.model == model
        return answer.choices[0].text

    assert "Paris" in say(APART)
    assert say(APART) == say(TOGETHER)
    assert say(OTHER) != say(APART)
    assert {card.id for card in cluster.openai.models.list()} == {APART, TOGETHER, OTHER, EMBEDDER}


def test_grpc_client_made_from_reflection_alone(cluster: RealCluster) -> None:
    messages, services = generate_by_reflection(
        cluster.grpc,
        model=APART,
        chat={"messages": [{"role": "user", "content": "What is the capital of France?"}]},
        sampling={"temperature": 0.0, "max_tokens": 20},
    )
    assert "Paris" in "".join(delta.text for message in messages for delta in message.sequences)
    assert messages[-1].placement.prefill_worker
    assert {"segue.v1.Inference", "segue.v1.Cluster", "grpc.health.v1.Health"} <= services
