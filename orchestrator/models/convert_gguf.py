"""A GGUF file -> a Hugging Face folder with weights, tokenizer and chat template::

    python -m orchestrator.models.convert_gguf FILE FOLDER

The weights are written in bfloat16 (270 MB for 135 million parameters). That rounds what the quantized file holds, but
only once: whoever reads the folder, in whatever precision, then starts from the very same numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(file: Path, folder: Path) -> None:
    """Write the model of ``file`` into ``folder``, which exists."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    # The weights are plain now; left in place, these marks would have them saved, and loaded again, as quantized.
    for mark, plain in (("hf_quantizer", None), ("quantization_method", None), ("is_quantized", False)):
        if hasattr(model, mark):
            setattr(model, mark, plain)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
