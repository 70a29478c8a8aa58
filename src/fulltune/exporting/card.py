"""The model card of a result (`README.md`): what it was made of, how, and what was measured, from the run's own facts.

The base's card is never shipped: what it says is true of another model. Its licence is carried over where it names one.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from fulltune.base.gate import GateVerdict
from fulltune.base.records import EvalReport, SourceFacts
from fulltune.base.secrets import masked
from fulltune.base.visible import visible

_FIELD = re.compile(
    r"^(license|license_name|license_link)\s*:\s*[\"']?([^\"'\n#\[\]{}]{1,200}?)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LONGEST = 1 << 16
"""Characters of the base's card that are looked at."""
_TITLES = {
    r"\s*Apache License\s+Version 2\.0": "apache-2.0",
    r"\s*(?:The )?MIT License": "mit",
    r"\s*GNU GENERAL PUBLIC LICENSE\s+Version 3": "gpl-3.0",
}
"""How licence texts begin, and what Hugging Face calls them."""
_HUB = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
"""`owner/name`, or `name` alone as the oldest have it. Of folders and files a resolved recipe has the whole path."""
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")
"""What Markdown could take for more than a character."""
_SPLITS = {"test": "test data, which nothing was chosen by", "heldout": "held-out data", "retention": "retention data"}

_KL = (
    "`retention.kl` is how far its predictions lie from the base's there, in nats per token (KL divergence), at least."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What there is to say of a result."""

    name: str
    base: str
    """Path or hub id of the model that it started from."""
    base_folder: Path
    """Where the base's files lie."""
    step: int | None
    """The update that the weights are of; None if that is not told."""
    mixed: str | None
    """Of a mixture of models: how much of which."""
    sources: Mapping[str, Sequence[SourceFacts]]
    """By split, with the examples that each gave to it."""
    before: EvalReport | None
    after: EvalReport | None
    intervals: Mapping[str, tuple[float, float]]
    """Of those of its scores that have one."""
    earlier: Sequence[Mapping[str, str]] = ()
    """Scores of earlier tasks: `task`, `score`, `before`, `after`, `change`."""
    transfer: Sequence[str] = ()
    """What they say, in sentences; also what of them was not measured."""
    settings: Mapping[str, str]
    """How it was trained, by name."""
    versions: Mapping[str, str]
    chat: bool
    """Whether it has a chat template."""
    verdict: GateVerdict | None = None
    """Whether it is to be shipped, by the gate of its run."""


def text(card: Card) -> str:
    """The card: front matter as Hugging Face reads it, then Markdown for people."""
    return f"---\n{_front(card)}\n---\n\n{_body(card)}"


def _front(card: Card) -> str:
    licence, found = licence_of(card.base_folder), _results(card)
    values = ModelCardData(
        base_model=hub_id(card.base),
        datasets=_known_data(card),
        library_name="transformers",
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        pipeline_tag="text-generation",
        tags=["fulltune", "full-fine-tuning", *(["conversational"] if card.chat else [])],
        model_name=card.name if found else None,
        eval_results=found or None,
    )
    return str(values.to_yaml())


def _results(card: Card) -> list[EvalResult]:
    """What was measured of the result, in the form of a model index; nothing that is not finite."""
    if card.after is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_type(card, split),
            dataset_name=_SPLITS[split].partition(",")[0] if split in _SPLITS else split,
            # Results of one type and split are taken for one, whatever their names.
            dataset_split=split if split in _SPLITS else None,
            dataset_config=None if split in _SPLITS else split,
            metric_type=metric,
            metric_name=name,
            metric_value=float(f"{score:.6g}"),
        )
        for name, score in card.after.scores.items()
        for split, _, metric in [name.partition(".")]
        if "." not in metric and math.isfinite(score)
    ]


def _type(card: Card, split: str) -> str:
    """The hub id of a split's only source, else `local`."""
    sources = card.sources.get(split) or ()
    known = [found for source in sources if (found := hub_id(source.path)) is not None]
    return known[0] if len(known) == len(sources) == 1 else "local"


def _known_data(card: Card) -> list[str] | None:
    known = [hub_id(source.path) for source in card.sources.get("train", ())]
    return sorted({name for name in known if name is not None}) or None


def hub_id(path: str) -> str | None:
    """A model or data set by its hub id; None of a folder or file, whose name on the hub nobody knows."""
    return path if _HUB.fullmatch(path) else None


def licence_of(base: Path) -> dict[str, str]:
    """What the base says of its licence: in its card's front matter, or by how its licence file begins."""
    card = base / "README.md"
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            front = _FRONT.match(file.read(_LONGEST))
        found = {name: value.strip() for name, value in _FIELD.findall(front[1])} if front else {}
        if "license" in found:
            return {name: visible(value) for name, value in found.items()}
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (base / name).is_file():
            with (base / name).open(encoding="utf-8", errors="replace") as file:
                begins = file.read(1000)
            return next(({"license": known} for title, known in _TITLES.items() if re.match(title, begins)), {})
    return {}


def _body(card: Card) -> str:
    named = hub_id(card.base)
    base = f"[{_safe(named)}](https://huggingface.co/{named})" if named else f"`{_code(Path(card.base).name)}`"
    of = f", after {card.step:,} updates" if card.step else ""
    lines = [f"# {_safe(card.name)}", "", f"{base}, whose weights were trained further with fulltune{of}.", ""]
    if card.mixed is not None:
        lines += [f"These weights are a mixture, made after training: {_safe(card.mixed)}.", ""]
    if named is None:
        lines += [
            "The base was read from a folder, so its name on the hub is not known here. Add `base_model` above.",
            "",
        ]
    lines += [*_measured(card), *_earlier(card), *_data(card), "## Training", ""]
    lines += [
        "| | |",
        "|---|---|",
        *(f"| {_safe(name)} | {_safe(value)} |" for name, value in card.settings.items()),
        "",
    ]
    lines += [
        "Versions: " + ", ".join(f"{_safe(name)} {_safe(version)}" for name, version in card.versions.items()) + ".",
        "",
    ]
    lines += [*_use(card), *_licence(card)]
    return "\n".join(lines)


def _measured(card: Card) -> Iterator[str]:
    yield from ("## What it gained and lost", "")
    if card.verdict is not None:
        yield from (f"**{card.verdict.word}**: {_safe(card.verdict.headline)}.", "")
        yield from (f"- {_safe(reason)}" for reason in card.verdict.reasons)
        yield from [""] if card.verdict.reasons else []
    if card.after is None:
        yield from ("Nothing was measured of these weights.", "")
        return
    old = card.before.scores if card.before is not None else {}
    yield from ("| score | base | this model | over |", "|---|---:|---:|---:|")
    for name, score in card.after.scores.items():
        before = f"{old[name]:.4g}" if name in old else "not measured"
        parent = name.rpartition(".")[0]
        counted = card.after.counts.get(name, card.after.counts.get(parent))
        unit = "tokens" if parent.partition(".")[0] in _SPLITS else "questions"
        low, high = card.intervals.get(name, (None, None))
        span = "" if low is None else f" ({low:.4g} to {high:.4g})"
        yield f"| {_safe(name)} | {before} | {score:.4g}{span} | {'' if counted is None else f'{counted:,} {unit}'} |"
    yield ""
    if "retention.loss" in card.after.scores:
        yield from (
            "Retention is text that the base could already model; where its loss rose, something was forgotten.",
            *([_KL] if "retention.kl" in card.after.scores else []),
            "",
        )
    else:
        yield from ("What the model forgot was not measured.", "")


def _earlier(card: Card) -> Iterator[str]:
    if not card.transfer and not card.earlier:
        return
    yield from ("## Earlier tasks", "")
    for said in card.transfer:
        yield from (_safe(said), "")
    if card.earlier:
        yield from ("| task | score | before | after | backward transfer |", "|---|---|---:|---:|---:|")
        for row in card.earlier:
            yield "| " + " | ".join(_safe(row[key]) for key in ("task", "score", "before", "after", "change")) + " |"
        yield from ("", "Backward transfer: the score after this training minus that before it.", "")


def _data(card: Card) -> Iterator[str]:
    yield from ("## Data", "", "| for | source | examples | sha256 |", "|---|---|---:|---|")
    for split, sources in card.sources.items():
        for source in sources:
            name = hub_id(source.path) or source.path.rstrip("/").rpartition("/")[2]
            yield f"| {_safe(split)} | {_safe(name)} | {source.examples:,} | `{_code(source.sha256[:16])}` |"
    yield ""


def _use(card: Card) -> Iterator[str]:
    yield from ("## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield 'folder = "."  # this folder, or its name on the hub'
    yield from (
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
    )
    if card.chat:
        yield 'messages = [{"role": "user", "content": "..."}]'
        yield "inputs = tokenizer.apply_chat_template("
        yield '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
        yield ")"
    else:
        yield 'inputs = tokenizer("...", return_tensors="pt")'
    yield "made = model.generate(**inputs, max_new_tokens=256)"
    yield from ('print(tokenizer.decode(made[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))', "```", "")


def _licence(card: Card) -> Iterator[str]:
    found = licence_of(card.base_folder).get("license")
    yield from ("## Licence", "")
    if found:
        yield f"The base is under `{_code(found)}`. What the data allows besides, whoever publishes this has to say."
    else:
        yield "The base's folder does not name its licence. Whoever publishes this has to say it."
    yield ""


def _safe(text: str) -> str:
    """Any text as one line of Markdown in which it is nothing but text."""
    return _MARKS.sub(r"\\\1", " ".join(visible(masked(text)).split()))


def _code(text: str) -> str:
    """Any text as it may stand between backticks in a table."""
    return re.sub(r"[`|\s]+", " ", visible(masked(text)))
