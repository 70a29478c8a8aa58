"""The data preparation of TRL's SFTTrainer: from the loaded data set to the trainer made, around a model of no size."""

import os

from benchmarks.contestants import columns
from benchmarks.contestants.task import Answer, Clock, Task, main_peak, size, versions


def main() -> None:
    """Prepare, then say what it took."""
    task = Task.given()
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the trainer wants one; nothing is padded here
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **small))
    config = SFTConfig(
        output_dir=task.out,
        dataset_num_proc=task.workers,
        assistant_only_loss=True,
        packing=False,
        max_length=task.max_length,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    clock = Clock()
    with clock.phase("load"):
        rows = load_dataset("json", data_files=task.rows, split="train")
    with clock.phase("prepare"):
        trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    peak, written = main_peak(), size([os.environ["HF_DATASETS_CACHE"]])
    made = trainer.train_dataset.flatten_indices()  # it is shuffled by a column of indices
    ids, taught = made.data.column("input_ids"), columns.mask(made.data.column("labels"))
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
