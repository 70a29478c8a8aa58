"""Makes everything in src/fulltune/embedded: a tiny base model, its tokenizer, and the quickstart's data.

    python -m tools.make_embedded            # about 20 minutes on 2 cores
    python -m tools.make_embedded --data     # only the data, in a second

Seeded: the same versions on the same machine give the same bytes. The base is pretrained with fulltune itself, from
random weights, on text that tools/embedded generates; none of it is taken from anywhere.
"""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from tools.embedded import general, support

TARGET = Path(__file__).resolve().parent.parent / "src/fulltune/embedded"
DOCUMENTS = 64_000
SEED = 0

SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BEGIN, END = 0, 1, 2
VOCABULARY = 1024

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('this model knows no role ' + message.role) }}
    {%- endif %}
    {{- '<|' + message.role + '|>' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

RECIPE = {
    "train": {"epochs": 3, "batch_examples": 64, "precision": "float32", "seed": SEED},
    "optim": {
        "lr": 3e-3,
        "warmup": 100,
        "floor": 0.02,
        "weight_decay": 0.1,
        "options": {"betas": [0.9, 0.95]},
    },
    "export": {"dtype": "bfloat16"},
}


def main() -> None:
    """Make the data, and the model unless only the data is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="leave the model as it is")
    data_only = parser.parse_args().data
    TARGET.mkdir(exist_ok=True)
    make_data(TARGET)
    if not data_only:
        with tempfile.TemporaryDirectory() as work:
            make_model(Path(work), TARGET / "model")


def make_data(folder: Path) -> None:
    """Support rows to learn, two groups of held-out ones, general text that pretraining had not, and some to replay."""
    rng = random.Random(SEED + 1)
    write_rows(folder / "train.jsonl", support.rows(rng, 720, held=False))
    write_rows(folder / "heldout.jsonl", support.rows(rng, 96, held=True))
    write_rows(folder / "phrasings.jsonl", support.rows(rng, 48, held=True, otherwise=True))
    write_rows(folder / "general.jsonl", [{"text": general.document(rng, held=True)} for _ in range(150)])
    rng = random.Random(SEED + 2)
    write_rows(folder / "replay.jsonl", [{"text": general.document(rng, held=False)} for _ in range(400)])


def make_model(work: Path, target: Path) -> None:
    """Tokenizer, random weights, pretraining, bf16 export."""
    import fulltune

    rng = random.Random(SEED)
    documents = list(dict.fromkeys(general.document(rng, held=False) for _ in range(DOCUMENTS)))
    write_rows(work / "text.jsonl", [{"text": document} for document in documents])
    write_tokenizer(work / "start", documents[:8000])
    write_random_model(work / "start")
    data = {"train": str(work / "text.jsonl"), "heldout": 0.01, "max_length": 512}
    fulltune.train({"model": {"path": str(work / "start")}, "data": data, **RECIPE}, out=work / "run")
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(work / "run/model", target)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tokenizer(folder: Path, documents: list[str]) -> None:
    """A byte-level BPE of 1024 tokens. Digits go in pairs: single ones repeat too often to be copied reliably."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BEGIN]} $A", special_tokens=[(SPECIAL[BEGIN], BEGIN)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BEGIN],
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[PAD],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def write_random_model(folder: Path) -> None:
    """1.4 million random weights in the shape of a Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
