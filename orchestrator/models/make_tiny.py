"""A Llama of 13 million random parameters with another model's tokenizer::

    python -m orchestrator.models.make_tiny TOKENIZER_FOLDER FOLDER

For tests: it loads in a second, and its 8 heads and 4 KV heads divide over two or four devices, which few small models'
do. The wide initializer keeps its logits apart, so that greedy output doesn't hang on rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

SEED = 0


def make(tokenizer_folder: Path, folder: Path) -> None:
    """Write the model into ``folder``, which exists. The same numbers every time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        initializer_range=0.08,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
