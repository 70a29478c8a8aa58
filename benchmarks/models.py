"""Random Llamas of known shapes with a tokenizer, as model folders: what benchmarks of training train."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import material
from benchmarks.bed import SHAPES as OTHERS
from benchmarks.fresh import ROOT

SHAPES: Mapping[str, Mapping[str, int]] = {
    "S": {
        "vocab_size": 32064,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "M": {
        "vocab_size": 32064,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "L": OTHERS["135m"],
    "tiny": {**OTHERS["tiny"], "vocab_size": 32064},
}
"""With tied embeddings: 11.2, 28.0 and 134.5 million parameters, the last SmolLM-135M's shape; and one for tests."""
TOKENIZER = ROOT.parent / "shared" / "tokenizers" / "llama2-32k"
"""Where there is none the embedded model's is taken, and texts have more tokens."""


def save(target: Path, shape: str, *, tokenizer: Path | None = None, seed: int = 7) -> int:
    """A model folder with float32 weights that are the same for the same seed; how many parameters it has."""
    chosen = TOKENIZER if tokenizer is None and TOKENIZER.exists() else tokenizer
    material.model_folder(target, chosen, material.TEMPLATE)
    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 2} if chosen is not None else {}
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, **ends)
    model = LlamaForCausalLM(config)
    model.save_pretrained(target)
    return sum(parameter.numel() for parameter in model.parameters())
