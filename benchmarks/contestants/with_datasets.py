"""A plain script over the `datasets` library: load, map the chat template, save to disk. Nothing is checked."""

import os
import sys
from typing import Any

from benchmarks.contestants import columns
from benchmarks.contestants.task import Answer, Clock, Task, main_peak, size, versions


def main() -> None:
    """Prepare, then say what it took; with `batched` as second argument, a thousand rows in one call."""
    task = Task.given()
    batched = "batched" in sys.argv[2:]
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer.apply_chat_template(
            rows["messages"],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            truncation=True,
            max_length=task.max_length,
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    clock = Clock()
    with clock.phase("load"):
        rows = load_dataset("json", data_files=task.rows, split="train")
    with clock.phase("prepare"):
        made = rows.map(encode, batched=batched, num_proc=task.workers, remove_columns=rows.column_names)
        made.save_to_disk(task.out, num_proc=task.workers)
    peak, written = main_peak(), size([task.out, os.environ["HF_DATASETS_CACHE"]])
    ids, taught = made.data.column("input_ids"), made.data.column("assistant_masks")
    if task.dump is not None:
        columns.write_dump(task.dump, ids, taught)
    count, tokens, supervised = columns.counts(ids, taught)
    Answer(
        phases=clock.phases,
        cpu=clock.cpu,
        main_peak=peak,
        rows=count,
        tokens=tokens,
        supervised_tokens=supervised,
        written=written,
        versions=versions(),
        remarks={},
    ).write(task.answer)


if __name__ == "__main__":
    main()
