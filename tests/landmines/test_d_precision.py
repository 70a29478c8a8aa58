"""Landmines D: precision, and numbers that are none."""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fulltune
from fulltune.base.errors import DataError, DivergedError
from fulltune.base.formats import MomentFormat
from fulltune.engine.moments import widen
from fulltune.engine.rounded import RoundedWeights
from fulltune.model.facts import blocks, checkpoint_blocks
from fulltune.model.load import load_model
from fulltune.model.trust import digest
from fulltune.objectives import _cross_entropy
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from fulltune.recipe.schema import ModelSection
from fulltune.training.journal import read
from fulltune.training.progress import ProgressLine
from tests import tiny
from tests.contract.ground import Ground


def test_landmine_D1_a_bf16_file_is_trained_with_float32_weights(tmp_path: Path, data: Path) -> None:
    """12 updates at 1e-5 move nearly every weight; with bf16 weights 85% would stay where they were."""
    model = tiny.model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    asked = tiny.recipe(
        tmp_path / "model",
        data,
        train={"steps": 12, "precision": "bf16-mixed"},
        optim={"lr": 1e-5, "schedule": "constant", "warmup": 0},
        export={"dtype": "float32"},
    )
    fulltune.train(asked, out=tmp_path / "run")
    tuned = load_file(tmp_path / "run/model/model.safetensors")
    start = dict(model.named_parameters())
    matrices = [name for name, weight in tuned.items() if weight.ndim == 2 and "embed" not in name]
    same = sum(int((tuned[name] == start[name].float()).sum()) for name in matrices)
    assert same / sum(tuned[name].numel() for name in matrices) < 0.05
    state = load_file(next((tmp_path / "run/checkpoints").glob("*12")) / "optimizer.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


class Row(nn.Module):
    """One matrix of bfloat16 numbers; `undecayed` is nothing."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())


def rounded(start: Tensor, *, moments: MomentFormat = "float32", **options: Any) -> tuple[Row, RoundedWeights]:
    net = Row(start)
    given = {"name": "adamw", "lr": 1e-5, "weight_decay": 0.0, "options": {}, **options}
    return net, RoundedWeights(
        net, lambda named: make(groups=groups(named, Parting(undecayed=())), **given), moments=moments
    )


def move(net: Row, weights: RoundedWeights, gradient: Tensor, seed: int) -> None:
    torch.manual_seed(seed)  # as training does before every update
    net.weight.grad = gradient
    weights.step(0.0, math.inf, ())
    weights.clear()


def test_landmine_D2_small_updates_are_not_rounded_away() -> None:
    """At 1e-5 bf16-sr moves weights as far as float32 does; plain bfloat16, its steps rounded away, a fifth of it."""
    start = (torch.randn(100, 200, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    gradient = torch.ones_like(start)
    net, weights = rounded(start)
    plain = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0)
    for seed in range(20):
        move(net, weights, gradient.clone(), seed)
        plain.grad = gradient.clone()
        optimizer.step()
    wanted = -20 * 1e-5
    assert float((net.weight.detach().double() - start.double()).mean()) == pytest.approx(wanted, rel=0.05)
    assert abs(float((plain.detach().double() - start.double()).mean())) < abs(wanted) / 3, "the landmine is real"


def test_landmine_D3_weight_decay_acts_on_bf16_weights() -> None:
    """1 - 1e-3 * 0.1 is 1 in bfloat16: a hundred such steps are 0.990, and were 1."""
    net, weights = rounded(torch.ones(50, 100), name="sgd", lr=1e-3, weight_decay=0.1)
    for seed in range(100):
        move(net, weights, torch.zeros(50, 100, dtype=torch.bfloat16), seed)
    assert float(net.weight.detach().float().mean()) == pytest.approx(0.990, abs=0.001)


def test_landmine_D4_second_moments_in_bf16_fade() -> None:
    """Gradients of 10, then of 0.1: rounded to the nearest the second moment would stay where it was; in 8 bits too,
    where it would keep its place beside those whose gradients stay."""
    found, fading = {}, torch.arange(50) % 10 > 0
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}
    for moments, dtype in dtypes.items():
        net, weights = rounded(torch.ones(20, 50), moments=moments)
        for seed in range(300):
            gradient = torch.full((20, 50), 10.0)
            gradient[:, fading] = 10.0 if seed < 10 else 0.1
            move(net, weights, gradient.bfloat16(), seed)
        (state,) = weights.optimizer.state.values()
        assert state["exp_avg_sq"].dtype == dtype
        widen(state)
        found[moments] = float(state["exp_avg_sq"][:, fading].mean())
    assert found["float32"] < 0.8, "it came down from 1"
    for moments in ("bfloat16", "int8"):
        assert found[moments] == pytest.approx(found["float32"], rel=0.1), moments


def test_landmine_D5_a_thousand_micro_batches_add_up() -> None:
    net, weights = rounded(torch.ones(4, 4))
    for number in range(1000):
        weights.begin(last=number == 999)
        (net.weight * 0.01).sum().backward()
    (total,) = weights.gradients()
    assert total.dtype == torch.float32
    assert torch.allclose(total, torch.full((4, 4), 10.0), rtol=0.01)
    plain = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        plain += 0.01
    assert float(plain) == 4.0, "the landmine is real"


def test_landmine_D6_gradients_are_unscaled_before_they_are_measured_and_clipped(tmp_path: Path) -> None:
    wide = Ground(tmp_path / "a", tiny.model("llama"), count=8, optimizer="sgd")
    wide.gradients()
    norm = wide.engine.update([1.0, 1.0]).grad_norm
    ground = Ground(tmp_path / "b", tiny.model("llama"), count=8, optimizer="sgd", precision="fp16-mixed", clip=0.01)
    before = {name: p.detach().clone() for name, p in ground.model.named_parameters()}
    ground.gradients()
    assert float(ground.model.lm_head.weight.grad.norm()) > 100 * norm, "they are scaled by 65536"
    for group in ground.engine._optimizer.param_groups:
        group["weight_decay"] = 0.0
    update = ground.engine.update([1.0, 1.0])
    assert update.grad_norm == pytest.approx(norm, rel=0.01)
    moved = sum(float((p.detach() - before[n]).double().pow(2).sum()) for n, p in ground.model.named_parameters())
    assert math.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


def test_landmine_D7_a_float16_file_is_trained_with_float32_weights(tmp_path: Path, data: Path) -> None:
    tiny.model("llama").to(torch.float16).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    asked = tiny.recipe(tmp_path / "model", data, train={"steps": 3, "precision": "fp16-mixed"})
    record = fulltune.train(asked, out=tmp_path / "run")
    assert record.progress.update == 3
    assert record.plan.dtypes.compute == "float16"
    checkpoint = next((tmp_path / "run/checkpoints").glob("*3"))
    assert {value.dtype for value in load_file(checkpoint / "weights.safetensors").values()} == {torch.float32}
    assert {v.dtype for v in load_file(tmp_path / "run/model/model.safetensors").values()} == {torch.float16}


def test_landmine_D8_an_overflow_advances_nothing_and_the_same_update_is_made_again(tmp_path: Path) -> None:
    """Scaled by 2^24 the first gradients overflow for real; made again until they do not, nothing else is different."""
    grounds = [Ground(tmp_path / name, tiny.model("llama"), count=8, precision="fp16-mixed") for name in "ab"]
    for ground in grounds:
        ground.gradients()
        assert ground.engine.update([1e-3, 1e-3]).applied
    calm, overflowing = grounds
    before = {name: p.detach().clone() for name, p in overflowing.model.named_parameters()}
    overflowing.engine._scale.restore({"scale": 2.0**24, "calm": 7})
    tries = 0
    while True:
        overflowing.gradients()
        update = overflowing.engine.update([1e-3, 1e-3])
        tries += 1
        if update.applied:
            break
        assert update.again
        assert all(torch.equal(before[n], p) for n, p in overflowing.model.named_parameters())
        assert all(float(state["step"]) == 1 for state in overflowing.engine._optimizer.state.values())
        assert all(p.grad is None for p in overflowing.model.parameters())
    assert tries > 3
    assert overflowing.engine._scale.numbers() == {"scale": 2.0 ** (25 - tries), "calm": 1}
    calm.gradients()
    calm.engine.update([1e-3, 1e-3])
    for (name, one), other in zip(calm.model.named_parameters(), overflowing.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name


def test_landmine_D8_what_overflows_without_a_scale_too_is_skipped_and_the_scale_is_as_before(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=4, precision="fp16-mixed")
    before = ground.engine._scale.numbers()
    answers = []
    for _ in range(17):
        ground.gradients()
        ground.model.lm_head.weight.grad[0, 0] = math.nan
        update = ground.engine.update([1e-3, 1e-3])
        assert not update.applied
        answers.append(update.again)
    assert answers == [True] * 16 + [False]
    assert ground.engine._scale.numbers() == before


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_landmine_D9_rotary_frequencies_stay_float32_beside_bf16_weights(tmp_path: Path, kind: str) -> None:
    model = tiny.model(kind)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    ground = Ground(tmp_path, model, count=4, precision="bf16-sr")
    ground.gradients()
    ground.engine.update([1e-3, 1e-3])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name]), name


CUSTOM = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("tilt", torch.linspace(0.5, 1.5, config.hidden_size), persistent=PERSISTENT)
"""


@pytest.mark.parametrize("persistent", [False, True])
def test_landmine_D10_buffers_that_loading_leaves_undefined_are_named(tmp_path: Path, persistent: bool) -> None:
    """transformers fills what the file holds; a buffer of foreign code that is in no file is what the memory held."""
    folder = tiny.folder(tmp_path / "model")
    (folder / "own.py").write_text(CUSTOM.replace("PERSISTENT", str(persistent)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    config |= {"model_type": "own_llama", "architectures": ["Own"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    if persistent:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "tilt": torch.linspace(2, 3, 32)}, folder / "model.safetensors", {"format": "pt"})
    section = ModelSection(path=str(folder), trust_remote_code=digest(folder))
    if not persistent:
        with pytest.raises(DataError, match=r"undefined: tilt"):
            load_model(section)
        return
    model = load_model(section)
    assert torch.equal(model.tilt, torch.linspace(2, 3, 32)), "what the file holds is the file's"
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny.model("llama").model.rotary_emb.inv_freq)


def test_landmine_D12_cross_entropy_is_float32_and_positions_are_integers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(64, 32_000, generator=generator) * 4).bfloat16()
    labels = torch.randint(32_000, (64,), generator=generator)
    exact = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    ours = float(_cross_entropy(logits.float(), labels, torch.ones(64)) / 64)
    assert abs(ours - exact) < 1e-4
    assert abs(float(torch.nn.functional.cross_entropy(logits, labels)) - exact) > 1e-4, "bf16 would be seen"
    for precision in ("bf16-mixed", "fp16-mixed", "bf16-sr"):
        ground = Ground(tmp_path / precision, tiny.model("llama"), count=4, layout="packed", precision=precision)
        batch = ground.batches()[0]
        assert batch.positions is not None
        assert batch.positions.dtype == torch.int64
        assert ground.engine.forward(batch)["next_token"].dtype == torch.float32


def poisoned(folder: Path, token: str) -> Path:
    """A model that gives NaN for every text with one token, and none before training looks at it."""
    model = tiny.folder(folder / "model")
    (folder / "poison.py").write_text(
        "import math, torch\n"
        "from fulltune.objectives import NextToken\n"
        "class Poisoned(NextToken):\n"
        "    def forward(self, batch):\n"
        "        sums = super().forward(batch)\n"
        f"        bad = bool((batch.ids == {tiny.tokenizer().convert_tokens_to_ids(token)}).any())\n"
        "        return {'next_token': sums['next_token'] * (math.nan if bad and self.training else 1.0)}\n"
    )
    return model


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows of which the 5th makes the loss NaN while training."""
    monkeypatch.syspath_prepend(tmp_path)
    rows = tiny.rows(40)
    rows[4] = {"prompt": "Q", "completion": "QQ"}  # no other row has this letter
    model = poisoned(tmp_path, "Q")
    data = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    return tiny.recipe(
        model,
        data,
        data={"heldout": [str(tiny.jsonl(tmp_path / "held.jsonl", tiny.rows(5, seed=3)))]},
        train={"objective": "poison:Poisoned", "epochs": 2, "batch_examples": 8, "micro_examples": 2},
        evaluate={"samples": 0},
    )


def test_landmine_D13_an_update_that_is_not_finite_moves_nothing_and_is_skipped(
    tmp_path: Path, poison: dict[str, Any]
) -> None:
    del poison["train"]["steps"]
    record = fulltune.train(poison, out=tmp_path / "run")
    warnings = list(read(tmp_path / "run/journal.jsonl", "warning"))
    assert record.progress.skipped == len(warnings) == 2, "once in each epoch"
    assert record.progress.update == record.plan.updates - 2
    rows = str(tmp_path / "rows.jsonl")
    assert all(f"{rows}:5" in line["rows"] and len(line["rows"]) == 2 for line in warnings), "its micro-batch alone"
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_landmine_D13_the_run_stops_when_too_many_were_skipped(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"]["max_skipped"] = 2
    with pytest.raises(DivergedError, match="2 updates were skipped") as caught:
        fulltune.train(poison, out=tmp_path / "run")
    assert "rows.jsonl:5" in caught.value.faults[0].where
    assert caught.value.exit_code == 5
    assert not (tmp_path / "run/model").exists()


def test_landmine_D14_nan_is_never_hidden(tmp_path: Path, poison: dict[str, Any]) -> None:
    """It stands in the journal by its name, with rows and without their text; a NaN score ends the run."""
    del poison["train"]["steps"]
    fulltune.train(poison, out=tmp_path / "run")
    journal = (tmp_path / "run/journal.jsonl").read_text()
    assert '"loss": "NaN"' in journal
    assert "QQ" not in journal
    for line in journal.splitlines():
        values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        if values["kind"] == "step":
            assert math.isfinite(values["loss"])


def test_landmine_D14_a_start_that_is_not_finite_is_seen_before_the_first_step(tmp_path: Path, data: Path) -> None:
    model = tiny.folder(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="model.norm.weight: 1 values are not finite"):
        fulltune.train(tiny.recipe(model, data), out=tmp_path / "run")


def test_landmine_D13_the_first_may_stop_the_run(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"]["on_nonfinite"] = "stop"
    with pytest.raises(DivergedError, match="not finite after update") as caught:
        fulltune.train(poison, out=tmp_path / "run")
    assert "rows.jsonl:5" in caught.value.faults[0].where
    assert caught.value.exit_code == 5


def test_landmine_D13_a_run_may_go_back_and_on_behind_the_examples(tmp_path: Path, poison: dict[str, Any]) -> None:
    del poison["train"]["steps"]
    poison["train"] |= {"on_nonfinite": "rollback", "max_rollbacks": 2}
    poison["checkpoint"] = {"every": 1}
    record = fulltune.train(poison, out=tmp_path / "run")
    lines = list(read(tmp_path / "run/journal.jsonl", "rollback"))
    assert record.progress.rollbacks == len(lines) == 2, "once in each epoch"
    assert record.progress.skipped == 0
    assert record.progress.update == record.plan.updates - 2
    assert all(f"{tmp_path / 'rows.jsonl'}:5" in line["rows"] for line in lines)
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    poison["train"]["max_rollbacks"] = 1
    with pytest.raises(DivergedError, match="1 rollbacks before it"):
        fulltune.train(poison, out=tmp_path / "again")


def test_landmine_D14_what_a_person_sees_says_nan_too() -> None:
    said = io.StringIO()
    line = ProgressLine(Console(file=said, width=200))
    line.hear("start", {"updates": 9, "pid": os.getpid()})
    line.hear("step", {"step": 1, "loss": "NaN", "lr": 1e-3, "tokens": 8, "seconds": 0.5})
    line.hear("evaluation", {"step": 1, "scores": {"heldout.loss": "NaN"}})
    rows = [f"rows.jsonl:{n}" for n in range(1, 9)]
    line.hear(
        "warning", {"what": "update skipped: loss or gradient not finite", "step": 1, "loss": "NaN", "rows": rows}
    )
    line.hear("warning", {"what": "out of memory: 64 bytes; halved", "step": 1})
    line.hear("rollback", {"what": "loss spike: back to update 0", "step": 1, "rows": rows[:1]})
    heard = said.getvalue().splitlines()
    assert "loss nan" in heard[0]
    assert heard[1] == "after      1 updates: heldout.loss nan"
    assert heard[2].endswith(f"not finite (update 1, {', '.join(rows[:5])})")
    assert heard[3] == "warning: out of memory: 64 bytes; halved (update 1)"
    assert heard[4] == "rollback: loss spike: back to update 0 (update 1, rows.jsonl:1)"


@pytest.mark.parametrize("dtype", ["base", "bfloat16"])
def test_landmine_D15_the_exported_number_format_is_the_one_asked_for(tmp_path: Path, data: Path, dtype: str) -> None:
    """From bf16 weights to a float32 folder, whose base was float32, and to bfloat16."""
    asked = tiny.recipe(
        tiny.folder(tmp_path / "model"),
        data,
        train={"steps": 2, "precision": "bf16-sr"},
        optim={"moments": "bfloat16"},
        export={"dtype": dtype},
    )
    fulltune.train(asked, out=tmp_path / "run")
    tuned = load_file(tmp_path / "run/model/model.safetensors")
    wanted = "float32" if dtype == "base" else dtype
    assert {str(value.dtype) for value in tuned.values()} == {f"torch.{wanted}"}
    assert json.loads((tmp_path / "run/model/config.json").read_text())["dtype"] == wanted
    checkpoint = next((tmp_path / "run/checkpoints").glob("*2"))
    saved = load_file(checkpoint / "weights.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert all(torch.equal(value.float(), saved[name].float()) for name, value in tuned.items()), "exactly these"
    state = load_file(checkpoint / "optimizer.safetensors")
    assert {value.dtype for name, value in state.items() if not name.endswith("/step")} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [
        ("float32", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("fp16-mixed", torch.float16),
        ("bf16-sr", torch.bfloat16),
    ],
)
def test_landmine_D16_no_environment_decides_what_is_computed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, wanted: torch.dtype
) -> None:
    """In training and in evaluation alike, whatever variables of other tools and torch's own default say."""
    for name in ("ACCELERATE_MIXED_PRECISION", "UNSLOTH_FORCE_FLOAT32"):
        monkeypatch.setenv(name, "fp16" if wanted != torch.float16 else "bf16")
    default = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16 if wanted != torch.float16 else torch.bfloat16)
    try:
        ground = Ground(tmp_path, tiny.model("llama"), count=2, precision=precision)
        seen = set()
        layer = ground.model.model.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda module, given, made: seen.add(made.dtype))
        ground.engine.forward(ground.batches()[0])
        with ground.engine.evaluating():
            ground.engine.forward(ground.batches()[0])
    finally:
        torch.set_autocast_dtype("cpu", default)
    assert seen == {wanted}


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed", "fp16-mixed", "bf16-sr"])
def test_landmine_J1_checkpointed_blocks_are_computed_twice_with_the_same_gradients(
    tmp_path: Path, precision: str
) -> None:
    """Dropout draws the same again, and the forward pass in 16 bits comes out the same."""
    found = []
    for checkpointed in (False, True):
        model = tiny.model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1)
        calls: list[int] = []
        blocks(model)[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointed:
            checkpoint_blocks(model)
        ground = Ground(tmp_path / str(checkpointed), model, count=2, precision=precision)
        batch = ground.batches()[0]
        torch.manual_seed(5)
        with ground.engine.micro(last=True):
            ground.engine.backward(ground.engine.forward(batch)["next_token"] / batch.supervised)
        assert len(calls) == 1 + checkpointed
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
