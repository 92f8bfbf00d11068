"""What the model says when nothing of Segue or vLLM is in between: transformers, float32, greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OUTPUT_TOKENS = 32
LENGTHS = (5, 17, 32, 33, 64, 100, 150, 200, 257, 300, 350, 400, 450, 512, 575, 600)

_TEXT = (
    "The river rises in the hills above the old town and runs south through fields of barley, past a mill that has "
    "not turned for a hundred years, to the harbour where boats unload fish at dawn. In spring the water is high and "
    "brown; by August a child can cross it on stones. People here say that whoever drinks from the spring will "
    "come back. "
    "There are three bridges. The first was built of wood, the second of iron, and the third of concrete, each after a "
    "flood had taken the one before. A library stands beside the second bridge, with maps of the valley as it was. "
)


@dataclass(frozen=True)
class Golden:
    """A prompt and what follows it, both as token ids."""

    prompt: list[int]
    output: list[int]


def prompts(tokenizer: Any) -> list[list[int]]:
    """One prompt for each length, each from its own place in the text, so that none is another's prefix."""
    ids: list[int] = tokenizer(_TEXT * 12)["input_ids"]
    return [ids[7 * place : 7 * place + length] for place, length in enumerate(LENGTHS)]


def transformers_greedy(path: str) -> list[Golden]:
    """The reference, computed token by token with the model's own cache."""
    torch.set_num_threads(1)  # threads that wait for each other crawl while engines want the same cores
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return [Golden(prompt, _continue(model, prompt)) for prompt in prompts(tokenizer)]


@torch.inference_mode()
def _continue(model: Any, prompt: list[int]) -> list[int]:
    output: list[int] = []
    step, cache = torch.tensor([prompt]), None
    for _ in range(OUTPUT_TOKENS):
        result = model(step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        output.append(int(result.logits[0, -1].argmax()))
        step = torch.tensor([[output[-1]]])
    return output
