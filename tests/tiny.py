"""Real tiny objects for tests: tokenizers, models, rows and recipes. No downloads, no mocks."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
VOCAB = 300

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_WORDS = "the a cat dog sat ran on under mat tree big small red blue and then said yes no maybe 12 345 7".split()

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "sliding_window": 8,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "cohere": {"model_type": "cohere", "num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"model_type": "granite", "num_key_value_heads": 2, "logits_scaling": 3.0},
    "phi": {"model_type": "phi", "num_key_value_heads": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "mamba": {"model_type": "mamba", "state_size": 8},
    "mixtral": {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Tiny random models by name; `phi` has a head with a bias, `gemma2` caps its logits, `cohere` and `granite` scale;
of `mixtral` transformers has the experts of a layer in one tensor, and files have them one by one.
"""

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def text(rng: random.Random, words: int) -> str:
    """Nonsense of so many words."""
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def tokenizer(*, template: str | None = TEMPLATE, adds_bos: bool = True, pad: str | None = "<pad>") -> Any:
    """A byte-level BPE of 300 tokens with a chat template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([text(rng, 20) for _ in range(50)], trainer)
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token=pad)
    made.chat_template = template
    return made


def model(kind: str = "llama", *, seed: int = 0, vocab: int = VOCAB, **changes: Any) -> Any:
    """A random model in eval mode, as from_pretrained would give it."""
    torch.manual_seed(seed)
    foreign = {"gpt2": set(_COMMON), "mamba": {"max_position_embeddings", "intermediate_size"}}.get(kind, set())
    common = {key: value for key, value in _COMMON.items() if key not in foreign}
    values = {**common, **KINDS[kind], "vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(config).eval()


def folder(path: Path, kind: str = "llama", *, tokens: Any = None, **changes: Any) -> Path:
    """A model folder with tokenizer and chat template."""
    model(kind, **changes).save_pretrained(path)
    (tokens if tokens is not None else tokenizer()).save_pretrained(path)
    return path


def rows(count: int, *, seed: int = 0, longest: int = 24) -> list[dict[str, str]]:
    """Prompts and completions of very uneven lengths, all different."""
    rng = random.Random(seed)
    return [
        {"prompt": f"{n}: {text(rng, rng.randint(1, longest))}", "completion": text(rng, rng.randint(1, longest))}
        for n in range(count)
    ]


def jsonl(path: Path, values: Sequence[Any]) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def recipe(model_folder: Path, data: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe that trains for moments; sections are laid over it."""
    values: dict[str, Any] = {
        "model": {"path": str(model_folder)},
        "data": {"train": str(data), "heldout": 0.2, "max_length": 256},
        "train": {"steps": 6, "batch_examples": 8, "precision": "float32"},
        "optim": {"lr": 1e-3},
        "evaluate": {"samples": 1, "sample_tokens": 4},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    return values
