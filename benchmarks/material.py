"""What all contestants read: one folder with tokenizer, chat template and config, and one file of rows."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from benchmarks import rows

TEMPLATE = Path(__file__).with_name("template.jinja")
"""The embedded model's own with generation tags, without which TRL cannot tell what the assistant said."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def model_folder(target: Path, tokenizer: Path | None, template: Path | None) -> None:
    """A model folder without weights: `tokenizer`, by default the embedded model's, and `template`, if given."""
    if tokenizer is None:
        with as_file(files("fulltune") / "embedded" / "model") as embedded:
            _copy(embedded, target)
        template = template or TEMPLATE
    else:
        _copy(tokenizer, target)
    if template is not None:
        shutil.copyfile(template, target / "chat_template.jinja")
    config = target / "config.json"
    if not config.exists():  # fulltune reads a model's folder, which has one
        config.write_text(json.dumps(_CONFIG))


def _copy(folder: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS:
            shutil.copyfile(path, target / path.name)


def corpus(source: Path | None, seed: int) -> Sequence[rows.Conversation]:
    """What rows are made from: a JSONL file, or what fulltune comes with."""
    return rows.embedded(seed) if source is None else rows.corpus_of(source)


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's files and their names."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    parts = [f"{inner.name} {digest(inner)}" for inner in sorted(path.iterdir()) if inner.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
