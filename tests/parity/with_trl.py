"""TRL's SFTTrainer over given examples, in a process of its own, since its import changes transformers.

`python -m tests.parity.with_trl TASK.json` reads model folder, settings and examples, and leaves `steps.json` and
`weights.safetensors` in a folder for each way of cutting an update.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


class Trainer(SFTTrainer):
    """TRL's, but for one thing: it decays embeddings, which fulltune spares."""

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return [name for name in super().get_decay_parameter_names(model) if "embed" not in name]


def train(task: dict[str, Any], *, parts: int, layout: str) -> None:
    """One epoch in the order given: no shuffling, no preparation, labels as they are."""
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    config = SFTConfig(
        output_dir=f"{task['out']}/{parts}-{layout}",
        num_train_epochs=1,
        per_device_train_batch_size=task["batch"] // parts,
        gradient_accumulation_steps=parts,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        padding_free=layout == "packed",
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        weight_decay=task["weight_decay"],
        max_grad_norm=task["clip"],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    examples = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in task["examples"]])
    trainer = Trainer(model, config, train_dataset=examples, processing_class=tokenizer)
    trainer.train()
    told = [line for line in trainer.state.log_history if "loss" in line]
    steps = [{name: line[name] for name in ("loss", "learning_rate", "grad_norm")} for line in told]
    (Path(config.output_dir) / "steps.json").write_text(json.dumps(steps))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    save_file(weights, Path(config.output_dir) / "weights.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(Path(sys.argv[1]).read_text())
    for cut in asked["cuts"]:
        train(asked, parts=cut[0], layout=cut[1])
