"""Each pull beside its formula, written down anew in float64; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulltune.base.errors import RecipeError
from fulltune.engine.crew import Alone
from fulltune.optim.pulls import PULLS, Asked, Pull, make
from fulltune.planning.pulls import require_pulls, require_whole
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import OptimSection
from fulltune.training.fisher import estimate
from fulltune.training.pulling import Pulling, _drawn
from fulltune.training.step import step
from tests import tiny
from tests.contract.ground import Ground

LR = 0.1


def pulling(ground: Ground, pulls: dict[str, Pull], folder: Path, **files: Path) -> Pulling:
    def found(count: int) -> dict[str, Tensor]:
        return estimate(ground.engine, ground.objective, alone(ground, count))

    return Pulling(
        pulls=pulls, engine=ground.engine, crew=Alone(), files=files, file=folder / "fisher.safetensors", estimate=found
    )


def alone(ground: Ground, count: int) -> Any:
    return (batch for member in range(count) for batch in ground.batches([member]))


def held(folder: Path, pulls: list[Asked], **more: Any) -> tuple[Ground, Pulling]:
    made = make(pulls)
    given = {"optimizer": "sgd", "count": 6, **more}
    ground = Ground(folder, tiny.model("llama-tied"), pulls=list(made.values()), **given)
    whole = pulling(ground, made, folder)
    whole.begin()
    return ground, whole


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double().clone() for name, value in model.named_parameters()}


def gradients(ground: Ground) -> dict[str, Tensor]:
    return {name: value.double().clone() for name, value in ground.gradients().items()}


Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Weights after an update, from those before it, the gradient, and the weights at the start."""
DECAY = 0.01


def follow(ground: Ground, formula: Formula, updates: int = 3) -> None:
    """Updates of plain SGD with the coupled decay that torch's has, each beside the formula from the same weights."""
    start = weights(ground.model)
    for _ in range(updates):
        before, found = weights(ground.model), gradients(ground)
        ground.engine.update([LR, LR])
        after = weights(ground.model)
        for name in start:
            decayed = found[name] + (0.0 if name in ground.spared else DECAY) * before[name]
            expected = formula(before[name], decayed, start[name])
            assert torch.allclose(after[name], expected, atol=1e-6, rtol=1e-5), name
    assert any(float((after[name] - start[name]).abs().max()) > 1e-3 for name in start), "it moved"


def test_l2_sp_pulls_beside_the_update(tmp_path: Path) -> None:
    ground, _ = held(tmp_path, [Asked("l2_sp", {"alpha": 3})])

    def formula(w: Tensor, g: Tensor, start: Tensor) -> Tensor:
        moved = w - LR * g
        return moved - LR * 3 * (moved - start)

    follow(ground, formula)


def test_the_penalty_of_l2_sp_is_in_the_gradient(tmp_path: Path) -> None:
    ground, _ = held(tmp_path, [Asked("l2_sp_penalty", {"alpha": 2})])
    follow(ground, lambda w, g, start: w - LR * (g + 2 * (w - start)))


def test_a_penalty_counts_in_the_norm_that_is_clipped(tmp_path: Path) -> None:
    ground, _ = held(tmp_path, [Asked("l2_sp_penalty", {"alpha": 1e4})], clip=0.5)
    start = weights(ground.model)
    ground.gradients()
    ground.engine.update([LR, LR])
    before, found = weights(ground.model), gradients(ground)
    whole = {name: found[name] + 1e4 * (before[name] - start[name]) for name in found}
    norm = torch.stack([value.norm() for value in whole.values()]).norm()
    assert ground.engine.update([LR, LR]).grad_norm == pytest.approx(float(norm), rel=1e-4)


def fishers(ground: Ground, count: int) -> dict[str, Tensor]:
    """By plain autograd: the squared gradient of each example's summed loss, over the number of taught tokens."""
    sums = {name: torch.zeros_like(value) for name, value in weights(ground.model).items()}
    tokens = 0
    for ids, labels in ground.rows()[:count]:
        logits = ground.model(input_ids=ids[None], use_cache=False).logits[0]
        taught = labels != -100
        loss = nn.functional.cross_entropy(logits[taught], labels[taught], reduction="sum")
        found = torch.autograd.grad(loss, list(ground.model.parameters()))
        for (name, _), gradient in zip(ground.model.named_parameters(), found, strict=True):
            sums[name] += gradient.double() ** 2
        tokens += int(taught.sum())
    return {name: value / tokens for name, value in sums.items()}


def test_ewc_holds_what_the_fisher_information_says(tmp_path: Path) -> None:
    ground, whole = held(tmp_path, [Asked("ewc", {"strength": 50, "examples": 4})])
    true = fishers(ground, 4)
    found = {
        name.rpartition("/")[0]: value for name, value in whole.remembered().items() if name.endswith("ewc.fisher")
    }
    assert found.keys() == true.keys()
    for name, value in true.items():
        assert torch.allclose(found[name].double(), value, rtol=1e-3, atol=1e-9), name
    assert max(float(value.max()) for value in true.values()) > 1e-3, "there is something to compare"
    start = weights(ground.model)
    before, gradient = start, gradients(ground)
    for _ in range(3):
        ground.engine.update([LR, LR])
        after = weights(ground.model)
        for name in start:
            decayed = gradient[name] + (0.0 if name in ground.spared else DECAY) * before[name]
            expected = before[name] - LR * (decayed + 50 * true[name] * (before[name] - start[name]))
            assert torch.allclose(after[name], expected, atol=1e-5, rtol=1e-4), name
        before, gradient = after, gradients(ground)


def test_fisher_information_is_kept_and_taken_by_another_run(tmp_path: Path) -> None:
    _, first = held(tmp_path / "a", [Asked("ewc", {"strength": 1, "examples": 4})])
    made = make([Asked("ewc", {"strength": 1})])
    ground = Ground(tmp_path / "b", tiny.model("llama-tied"), pulls=list(made.values()), count=6)
    second = pulling(ground, made, tmp_path / "b", ewc=tmp_path / "a/fisher.safetensors")
    before = weights(ground.model)
    second.begin()
    one, other = first.remembered(), second.remembered()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(torch.equal(before[name], value) for name, value in weights(ground.model).items())
    assert not (tmp_path / "b/fisher.safetensors").exists()
    wrong = pulling(ground, made, tmp_path / "b", ewc=tmp_path / "a/store/none")
    with pytest.raises(RecipeError, match="cannot be read"):
        wrong.begin()


def test_online_the_information_of_earlier_tasks_fades(tmp_path: Path) -> None:
    """Schwarz et al. 2018: F = online * F of the tasks before + F of the last one; and a third run goes on with it."""
    _, first = held(tmp_path / "a", [Asked("ewc", {"strength": 1, "examples": 4})])
    file, sums = tmp_path / "a/fisher.safetensors", {}
    for number, folder in enumerate((tmp_path / "b", tmp_path / "c")):
        made = make([Asked("ewc", {"strength": 1, "examples": 2, "online": 0.5})])
        ground = Ground(folder, tiny.model("llama-tied"), pulls=list(made.values()), count=6)
        again = pulling(ground, made, folder, ewc=file)
        again.begin()
        last, file = fishers(ground, 2), folder / "fisher.safetensors"
        before = (
            sums
            if number
            else {
                key.rpartition("/")[0]: value.double()
                for key, value in first.remembered().items()
                if key.endswith("fisher")
            }
        )
        sums = {name: 0.5 * before[name] + value for name, value in last.items()}
        for name, value in sums.items():
            assert torch.allclose(again.remembered()[f"{name}/ewc.fisher"].double(), value, rtol=1e-3, atol=1e-9), name


def test_ema_averages_and_moves_nothing(tmp_path: Path) -> None:
    ground, whole = held(tmp_path, [Asked("ema", {"decay": 0.8})])
    average = weights(ground.model)
    for _ in range(3):
        before, found = weights(ground.model), gradients(ground)
        ground.engine.update([LR, LR])
        for name, after in weights(ground.model).items():
            decayed = found[name] + (0.0 if name in ground.spared else DECAY) * before[name]
            assert torch.allclose(after, before[name] - LR * decayed, atol=1e-6)
            average[name] = 0.8 * average[name] + 0.2 * after
    kept = whole.remembered()
    assert all(
        torch.allclose(kept[f"{name}/ema.average"].double(), value, atol=1e-6) for name, value in average.items()
    )
    trained = weights(ground.model)
    shown = whole.instead(lambda: weights(ground.model))
    assert all(torch.allclose(shown[name], value, atol=1e-6) for name, value in average.items())
    assert any(not torch.equal(shown[name], trained[name]) for name in trained)
    assert all(torch.equal(trained[name], value) for name, value in weights(ground.model).items()), "put back"


def test_mixout_computes_with_what_is_mixed_and_moves_what_is_kept(tmp_path: Path) -> None:
    """Lee et al. 2020: passes see w0 + keep (w - w0), and the gradient reaches what was kept."""
    ground, whole = held(tmp_path, [Asked("mixout", {"probability": 0.4})])
    start = weights(ground.model)
    ground.gradients()
    ground.engine.update([LR, LR])  # away from the start, where all mixtures are the same
    kept = [name for name, value in start.items() if value.ndim > 1]
    for position in (8, 16):
        before = weights(ground.model)
        with whole.mixing(position):
            seen, found = weights(ground.model), gradients(ground)
            ground.engine.update([LR, LR])
        after = weights(ground.model)
        for name in start:
            keep = torch.ones_like(start[name])
            if name in kept:
                drawn = _drawn(f"0/{position}/{name}/0", start[name].float())
                keep = (drawn >= 0.4).double() / 0.6
                assert 0.5 < float((drawn >= 0.4).double().mean()) < 0.7
            assert torch.allclose(seen[name], start[name] + keep * (before[name] - start[name]), atol=1e-6), name
            decayed = keep * found[name] + (0.0 if name in ground.spared else DECAY) * before[name]
            assert torch.allclose(after[name], before[name] - LR * decayed, atol=1e-6), name
    with pytest.raises(KeyError), whole.mixing(24):
        mixed = weights(ground.model)
        raise KeyError
    assert any(not torch.equal(mixed[name], after[name]) for name in kept)
    assert all(torch.equal(after[name], value) for name, value in weights(ground.model).items()), "put back"


def test_mixout_is_right_on_average(tmp_path: Path) -> None:
    ground, whole = held(tmp_path, [Asked("mixout", {"probability": 0.5})])
    ground.gradients()
    ground.engine.update([LR, LR])
    own, total = weights(ground.model), None
    start = {name: value.clone() for name, value in whole.remembered().items()}
    for position in range(400):
        with whole.mixing(position):
            seen = weights(ground.model)["model.embed_tokens.weight"]
        total = seen if total is None else total + seen
    assert total is not None
    moved = own["model.embed_tokens.weight"] - start["model.embed_tokens.weight/mixout.start"]
    wrong = total / 400 - own["model.embed_tokens.weight"]
    assert float(wrong.norm() / moved.norm()) < 3 * 400**-0.5


def test_an_average_that_is_no_result_stays_aside(tmp_path: Path) -> None:
    ground, whole = held(tmp_path, [Asked("ema", {"decay": 0.8, "result": False})])
    ground.gradients()
    ground.engine.update([LR, LR])
    trained = weights(ground.model)
    assert all(
        torch.equal(trained[name], value) for name, value in whole.instead(lambda: weights(ground.model)).items()
    )


@pytest.mark.parametrize("name", sorted(PULLS))
def test_nothing_is_done_on_an_update_that_is_skipped_or_at_rate_0(tmp_path: Path, name: str) -> None:
    options = {"ema": {}, "mixout": {"probability": 0.5}, "ewc": {"strength": 5, "examples": 2}}
    ground, whole = held(tmp_path, [Asked(name, options.get(name, {"alpha": 5}))])
    ground.gradients()
    ground.engine.update([LR, LR])
    before, kept = weights(ground.model), {key: value.clone() for key, value in whole.remembered().items()}
    ground.gradients()
    next(iter(ground.model.parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    assert not ground.engine.update([LR, LR]).applied
    ground.gradients()
    ground.engine.update([0.0, 0.0])
    assert all(torch.equal(before[name], value) for name, value in weights(ground.model).items())
    assert all(torch.equal(kept[key], value) for key, value in whole.remembered().items())


@pytest.mark.parametrize("name", ["l2_sp", "l2_sp_penalty", "ema"])
def test_in_bfloat16_a_pull_sees_float32(tmp_path: Path, name: str) -> None:
    """What it remembers is not rounded, and small pulls are not lost: they are right on average."""
    options = {"decay": 0.99} if name == "ema" else {"alpha": 1}
    ground, whole = held(tmp_path, [Asked(name, options)], precision="bf16-sr", optimizer="adamw")
    assert all(value.dtype == torch.float32 for value in whole.remembered().values())
    before = weights(ground.model)
    assert all(torch.equal(before[name], value) for name, value in whole.instead(lambda: weights(ground.model)).items())
    for _ in range(2):
        assert step(ground.batches(), [1e-3, 1e-3], engine=ground.engine, objective=ground.objective).applied
    trained = weights(ground.model)
    one, two = (whole.instead(lambda: weights(ground.model)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one), "rounded the same way each time"
    assert all(torch.equal(trained[name], value) for name, value in weights(ground.model).items()), "put back"


def faults(tmp_path: Path, optim: dict[str, Any], **more: Any) -> str:
    values = {"model": {"path": str(tmp_path)}, "data": {"train": "/d.jsonl"}, "optim": optim, **more}
    with pytest.raises(RecipeError) as caught:
        require_pulls(load_recipe(values))
    return str(caught.value)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    assert "did you mean 'l2_sp'" in faults(tmp_path, {"pulls": "l2_spp"})
    assert "alpha" in faults(tmp_path, {"pulls": "l2_sp"})
    assert "alpha is 0" in faults(tmp_path, {"pulls": {"use": "l2_sp", "options": {"alpha": 0}}})
    assert "decay is 1" in faults(tmp_path, {"pulls": {"use": "ema", "options": {"decay": 1}}})
    assert "twice" in faults(tmp_path, {"pulls": ["ema", "ema"]})
    assert "beyond their start" in faults(tmp_path, {"lr": 1e-3, "pulls": {"use": "l2_sp", "options": {"alpha": 2000}}})
    ewc = {"use": "ewc", "options": {"strength": 1}}
    assert "there is none" in faults(tmp_path, {"pulls": [ewc]})
    assert "no file of it" in faults(tmp_path, {"pulls": {"use": "ewc", "options": {"strength": 1, "online": 0.9}}})
    assert "takes no file" in faults(tmp_path, {"pulls": [{"use": "ema", "file": "x.safetensors"}]})
    assert "DeepSpeed" in faults(tmp_path, {"pulls": [{**ewc, "file": "f"}]}, engine={"name": "zero2"})
    mixout = {"use": "mixout", "options": {"probability": 0.5}}
    assert "bf16-sr has none" in faults(tmp_path, {"pulls": mixout}, train={"precision": "bf16-sr"})
    assert "probability is 1" in faults(tmp_path, {"pulls": {"use": "mixout", "options": {"probability": 1}}})
    with pytest.raises(RecipeError, match="fsdp2 divides them"):
        require_whole(OptimSection(pulls=(mixout,)), "fsdp2")  # type: ignore[arg-type]
    data = {"train": "/d.jsonl", "retention": "/r.txt"}
    assert "float16" in faults(tmp_path, {"pulls": [ewc]}, data=data, train={"precision": "fp16-mixed"})


def test_a_file_counts_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {path: m}\ndata: {train: d.jsonl}\noptim: {pulls: [{use: ewc, options: {strength: 1}, file: f.st}]}\n"
    )
    assert load_recipe(tmp_path / "recipe.yaml").optim.pulls[0].file == str(tmp_path / "f.st")
