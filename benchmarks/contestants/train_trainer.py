"""transformers' Trainer, or TRL's SFTTrainer, on tokenised examples: in the same order, or grouped by length.

Options: `trl`, `grouped`, `pure` (weights and all else in bfloat16), `stored` (no gradient checkpointing, where it is
the default). Whatever is not named is left as it ships.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants.course import CLIP, RATE, Course, Mark, Trained
from benchmarks.contestants.task import main_peak, versions


@dataclass(slots=True)
class Seen:
    """What happens while it trains."""

    marks: list[Mark] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0


def main() -> None:
    """Train, then say what it took."""
    course, asked = Course.given(), set(sys.argv[2:])
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if "pure" in asked else torch.float32
    model = AutoModelForCausalLM.from_pretrained(course.model, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(course.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what is padded is masked, whatever it is
    seen = Seen()
    begun = time.perf_counter()
    lines = Path(course.rows).read_text(encoding="utf-8").splitlines()
    data = Dataset.from_list([json.loads(lines[number]) for number in course.order])
    trainer = _trainer(course, asked, model, tokenizer, data, _watcher(seen))
    prepared = time.perf_counter() - begun
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        seen.tokens.append(sum(len(row["input_ids"]) for row in rows))
        seen.supervised.append(int((batch["labels"] != -100).sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()
    trainer.save_model(course.out)
    Trained(
        marks=seen.marks,
        tokens=seen.tokens,
        supervised=seen.supervised,
        losses=seen.losses,
        prepared=prepared,
        peak=seen.peak,
        weights=course.out,
        versions=versions(),
    ).write(course.answer)


def _watcher(seen: Seen) -> Any:
    """Looks at the clock after each update."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not seen.marks:
                seen.marks.append(Mark.now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.marks.append(Mark.now())
            seen.peak = main_peak()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                seen.losses.append(float(logs["loss"]))

    return Watcher()


def _trainer(course: Course, asked: set[str], model: Any, tokenizer: Any, data: Any, watcher: Any) -> Any:
    common = {
        "output_dir": course.out,
        "per_device_train_batch_size": course.batch,
        "max_steps": course.updates,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "bf16": course.precision == "bf16-mixed" and "pure" not in asked,
        "train_sampling_strategy": "group_by_length" if "grouped" in asked else "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    given = {"model": model, "train_dataset": data, "processing_class": tokenizer, "callbacks": [watcher]}
    if "trl" in asked:
        from trl import SFTConfig, SFTTrainer

        stored = {"gradient_checkpointing": False} if "stored" in asked else {}
        return SFTTrainer(args=SFTConfig(**common, **stored, max_length=None), **given)
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return Trainer(args=TrainingArguments(**common), data_collator=collator, **given)


if __name__ == "__main__":
    main()
