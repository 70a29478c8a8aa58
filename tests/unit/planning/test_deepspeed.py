"""DeepSpeed's configuration: what the recipe decides stands in one place, and the user's file may not contradict."""

import json
from pathlib import Path
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.planning.deepspeed import configuration
from fulltune.planning.precision import precision_plan
from fulltune.recipe.load import load_recipe


def made(
    folder: Path, own: Any = None, *, precision: Any = "float32", name: str = "zero3", **sections: Any
) -> dict[str, Any]:
    engine: dict[str, Any] = {"name": name, **sections.pop("engine", {})}
    if own is not None:
        engine["deepspeed"] = str(folder / "own.json")
        (folder / "own.json").write_text(own if isinstance(own, str) else json.dumps(own))
    values = {"model": {"path": "/m"}, "data": {"train": "/d.jsonl"}, "engine": engine, **sections}
    recipe = load_recipe(values)
    return configuration(recipe, precision_plan(precision, recipe.optim, several=True), 4096)


def faults(folder: Path, own: Any, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        made(folder, own, **more)
    assert all(str(folder / "own.json") in fault.where for fault in caught.value.faults)
    return [f"{fault.what}; {fault.mend}" for fault in caught.value.faults]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_recipe_alone_is_a_whole_configuration(tmp_path: Path, stage: int) -> None:
    found = made(tmp_path, name=f"zero{stage}", optim={"clip": 0.5})
    assert found["zero_optimization"]["stage"] == stage
    assert found["gradient_clipping"] == 0.5 and found["bf16"] == {"enabled": False}
    assert "offload_optimizer" not in found["zero_optimization"]
    assert ("stage3_prefetch_bucket_size" in found["zero_optimization"]) == (stage == 3)
    offloaded = made(tmp_path, name=f"zero{stage}", engine={"offload": True})["zero_optimization"]
    assert offloaded["offload_optimizer"] == {"device": "cpu"} and ("offload_param" in offloaded) == (stage == 3)
    assert made(tmp_path, name=f"zero{stage}", optim={"clip": None})["gradient_clipping"] == 0


def test_16_bits_add_up_in_float32_and_stop_at_what_is_not_finite(tmp_path: Path) -> None:
    found = made(tmp_path, precision="bf16-mixed")
    assert found["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert found["data_types"] == {"grad_accum_dtype": "fp32"} and found["communication_data_type"] == "fp32"


AUTO = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": "auto",
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "sub_group_size": 1e9,
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": 7,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "auto", "pin_memory": True},
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 10,
    "wall_clock_breakdown": False,
}


def test_a_file_of_autos_says_only_how(tmp_path: Path) -> None:
    plain, found = made(tmp_path), made(tmp_path, AUTO)
    zero = found["zero_optimization"]
    assert zero["overlap_comm"] is True and zero["stage3_param_persistence_threshold"] == 7
    assert zero["reduce_bucket_size"] == plain["zero_optimization"]["reduce_bucket_size"] == 4096**2
    assert zero["offload_optimizer"] == {"device": "none", "pin_memory": True}
    assert found["steps_per_print"] == 10
    told = ("zero_optimization", "steps_per_print", "wall_clock_breakdown")
    assert {key: value for key, value in found.items() if key not in told} == {
        key: value for key, value in plain.items() if key not in told
    }
    assert "auto" not in json.dumps(found)


def test_a_file_that_says_what_the_recipe_says(tmp_path: Path) -> None:
    own = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "weight_decay": 0.01, "betas": [0.9, 0.95]}},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    }
    sections = {"train": {"micro_examples": 4}, "optim": {"options": {"betas": [0.9, 0.95]}}}
    more: dict[str, Any] = {"precision": "bf16-mixed", "name": "zero2", "engine": {"offload": True}}
    assert made(tmp_path, own, **more, **sections) == made(tmp_path, **more, **sections)


def test_what_a_file_may_say_of_lion(tmp_path: Path) -> None:
    """Its betas are others than those of AdamW, and it has no epsilon."""
    optim = {"optim": {"name": "lion", "lr": 1e-5}}
    same = {"optimizer": {"type": "Lion", "params": {"lr": 1e-5, "betas": [0.9, 0.99]}}}
    assert made(tmp_path, same, **optim) == made(tmp_path, **optim)
    for wrong in ({"betas": [0.9, 0.999]}, {"eps": 1e-8}):
        with pytest.raises(RecipeError, match=f"optimizer.params.{next(iter(wrong))}"):
            made(tmp_path, {"optimizer": {"type": "Lion", "params": wrong}}, **optim)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train_batch_size": 64}, 'train_batch_size: 64, and by the recipe it is 32; write 32 or "auto"'),
        ({"train_micro_batch_size_per_gpu": 4}, "by the recipe it is auto"),
        ({"gradient_accumulation_steps": 8}, "by the recipe it is auto"),
        ({"gradient_clipping": 0.5}, "by the recipe it is 1.0"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.type: 'Adam', and optim.name is adamw"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "optimizer.params.lr: 0.001"),
        ({"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}}, "optimizer.params.amsgrad"),
        ({"optimizer": {"type": "AdamW", "legacy_fusion": True}}, "optimizer.legacy_fusion"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: fulltune does not pass it on; take it out"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: true, and by the recipe it is false"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: true, and by the recipe it is false"),
        ({"communication_data_type": "bf16"}, "communication_data_type"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: 2, and by the recipe it is 3"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer.device"),
        ({"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/n"}}}, "NVMe cannot be written"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights: fulltune does not"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "zero_hpz_partition_size"),
        ({"zero_optimization": True}, "zero_optimization: fulltune does not pass it on"),
        ({"elasticity": {"enabled": True}}, "elasticity: fulltune does not pass it on"),
        ({"prescale_gradients": True}, "prescale_gradients"),
    ],
)
def test_what_contradicts_is_refused(tmp_path: Path, own: dict[str, Any], said: str) -> None:
    assert said in faults(tmp_path, own)[0]


def test_all_faults_at_once(tmp_path: Path) -> None:
    own = {"train_batch_size": 1, "zero_optimization": {"stage": 1, "mics_shard_size": 4}, "fp16": {"enabled": True}}
    assert len(faults(tmp_path, own)) == 4


@pytest.mark.parametrize(
    ("own", "said"), [("{", "not JSON"), ("[]", "not a mapping"), ('{"a": 1, "a": 2}', "'a' stands")]
)
def test_a_file_that_is_none(tmp_path: Path, own: str, said: str) -> None:
    assert said in faults(tmp_path, own)[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        made(tmp_path, engine={"deepspeed": str(tmp_path / "none.json")})


def test_it_counts_from_the_folder_of_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: /m}\ndata: {train: /d.jsonl}\nengine: {name: zero1, deepspeed: own.json}\n")
    assert load_recipe(recipe).engine.deepspeed == str(tmp_path / "own.json")


def test_it_is_no_setting_of_another_engine(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only the engine zero1 or zero2 or zero3"):
        made(tmp_path, {}, name="fsdp2")
