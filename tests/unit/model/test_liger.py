"""Kernels of liger-kernel in one model: what it changes for all models is put back, and numbers are compared."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

import fulltune
from fulltune import starting
from fulltune.base.errors import DataError, MachineError, RecipeError
from fulltune.model.liger import fuse
from fulltune.planning import kernels
from tests import tiny

Apply = Callable[..., None]


@pytest.fixture
def package() -> Iterator[dict[str, Apply]]:
    """As liger-kernel 0.8 is built, so far as it is called: by kind of model, what changes one."""
    known: dict[str, Apply] = {}
    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = known  # type: ignore[attr-defined]
    patch._apply_liger_kernel_to_instance = lambda model, **asked: known[  # type: ignore[attr-defined]
        model.config.model_type
    ](model=model, **asked)
    names = ("liger_kernel", "liger_kernel.transformers", patch.__name__)
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({names[0]: ModuleType(names[0]), names[1]: ModuleType(names[1]), names[2]: patch})
    yield known
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def to_llama(factor: float) -> Apply:
    """Replaces a class and a function for all models, and the forward pass of one model's last norm."""

    def apply(*, model: Any, **asked: bool) -> None:
        assert asked == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
        assert model.config.model_type == "llama"
        modeling_llama.LlamaRMSNorm = torch.nn.Identity  # type: ignore[misc]
        modeling_llama.apply_rotary_pos_emb = None
        norm = model.model.norm
        forward = norm.forward
        norm.forward = MethodType(lambda _, hidden: forward(hidden) * factor, norm)

    return apply


def test_one_model_is_changed_and_no_other(package: dict[str, Apply]) -> None:
    package["llama"] = to_llama(1.0)
    before = (modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb)
    changed, ids = tiny.model("llama"), torch.arange(8)[None]
    plain = changed(input_ids=ids).logits
    fuse(changed)
    assert "forward" in vars(changed.model.norm)
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb) == before
    torch.testing.assert_close(changed(input_ids=ids).logits, plain)
    assert type(tiny.model("llama").model.norm) is before[0]


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_other_numbers_are_refused(package: dict[str, Apply], factor: float) -> None:
    package["llama"] = to_llama(factor)
    with pytest.raises(RecipeError, match="logits are others") as raised:
        fuse(tiny.model("llama"))
    assert raised.value.faults[0].where == "model.liger"


def test_a_model_that_it_does_not_know_or_leaves_alone_is_refused(package: dict[str, Apply]) -> None:
    with pytest.raises(RecipeError, match="no norms or MLPs for llama"):
        fuse(tiny.model("llama"))
    package["llama"] = lambda **_: None
    with pytest.raises(RecipeError, match="no norms or MLPs for llama"):
        fuse(tiny.model("llama"))


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    with pytest.raises(MachineError, match="liger-kernel cannot be used here") as raised:
        fuse(tiny.model("llama"))
    assert "fulltune[liger]" in raised.value.faults[0].mend


class Backward(torch.autograd.Function):
    """The same number, and another gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope * 1.01


def test_other_gradients_are_refused(package: dict[str, Apply]) -> None:
    def apply(*, model: Any, **_: bool) -> None:
        norm = model.model.norm
        forward = norm.forward
        norm.forward = MethodType(lambda _, hidden: Backward.apply(forward(hidden)), norm)

    package["llama"] = apply
    with pytest.raises(RecipeError, match="gradients are others"):
        fuse(tiny.model("llama"))


def test_what_it_makes_of_experts_is_left_out(package: dict[str, Apply]) -> None:
    seen: list[dict[str, bool]] = []
    package["mixtral"] = lambda *, model, **asked: seen.append(asked)
    with pytest.raises(RecipeError, match="no norms"):
        fuse(tiny.model("mixtral"))
    assert (seen[0]["swiglu"], seen[0]["geglu"]) == (False, False)


def test_a_result_is_compared_with_the_model_as_transformers_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels round in other places than the folder that is loaded anew; whoever compared those would refuse it."""
    loaded = starting.load_model

    def rounds_elsewhere(section: Any) -> Any:
        model: Any = loaded(section)
        forward = model.model.norm.forward
        model.model.norm.forward = MethodType(lambda _, hidden: forward(hidden) * (1 + 1e-4), model.model.norm)
        return model

    monkeypatch.setattr(starting, "load_model", rounds_elsewhere)
    monkeypatch.setattr(kernels, "_of_liger", lambda *_: ())
    folder, rows = tiny.folder(tmp_path / "model"), tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12))
    values = tiny.recipe(folder, rows, train={"steps": 1, "batch_examples": 4})
    with pytest.raises(DataError, match="its logits differ"):
        fulltune.train(values, out=tmp_path / "plain")
    values["model"]["liger"] = True
    fulltune.train(values, out=tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are of GPUs")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_the_package_itself_says_the_same(kind: str) -> None:
    pytest.importorskip("liger_kernel")
    fuse(tiny.model(kind).to("cuda"))
