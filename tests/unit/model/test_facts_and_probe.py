"""What models say of themselves, and what they answer when asked."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fulltune.base.errors import RecipeError
from fulltune.model import facts as about
from fulltune.model.attention import attend_in_blocks
from fulltune.model.probe import head_agrees, packing_isolates
from tests import tiny
from tests.unit.model.test_attention import made_here

ATTENDING = sorted(set(tiny.KINDS) - {"mamba"})


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_facts(kind: str) -> None:
    model = tiny.model(kind)
    facts = about.facts(model, model.config, None)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert (facts.layers, facts.hidden, facts.vocab) == (2, 32, tiny.VOCAB)
    assert facts.context == (None if kind == "mamba" else 256)
    assert facts.dtype == "float32"


@pytest.mark.parametrize(
    ("kind", "inner", "widest", "repeated"),
    [
        ("llama", 32 + 2 * 16 + 32 + 3 * 64, 64, 2 * 16),  # q, k and v, o, three matrices of the perceptron
        ("qwen3", 32 + 2 * 16 + 32 + 3 * 64, 64, 2 * 16),
        ("gpt2", 96 + 32 + 2 * 128, 128, 0),  # q, k and v in one
        ("phi", 4 * 32 + 2 * 64, 64, 0),
    ],
)
def test_the_shape_that_memory_asks_for(kind: str, inner: int, widest: int, repeated: int) -> None:
    model = tiny.model(kind)
    shape = about.facts(model, model.config, None).shape
    assert (shape.inner, shape.inner_block, shape.widest) == (2 * inner, inner, widest)
    assert (shape.heads, shape.repeated, shape.cut) == (4, repeated, True)
    block = sum(p.numel() for p in about.blocks(model)[0].parameters())
    assert (shape.block, shape.outside) == (block, sum(p.numel() for p in model.parameters()) - 2 * block)
    assert shape.tensor == max(p.numel() for p in model.parameters())
    with torch.device("meta"):
        assert about.shape(AutoModelForCausalLM.from_config(model.config), model.config) == shape, "without weights"


def test_of_experts_those_count_that_a_token_sees() -> None:
    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        num_key_value_heads=4,
        mlp_only_layers=[],
        **sizes,
    )
    shape = about.shape(AutoModelForCausalLM.from_config(config), config)
    attention, router = 4 * 32, 8
    assert shape.inner_block == attention + router + 2 * 3 * 48


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_our_cut_of_the_head_is_exact(kind: str) -> None:
    model = tiny.model(kind)
    cut = about.head(model)
    assert cut is not None
    assert head_agrees(model, cut, tiny.VOCAB)
    wrong = about.Head(cut.backbone, cut.projection, cut.vocab, cut.scale * 1.01, cut.softcap)
    assert not head_agrees(model, wrong, tiny.VOCAB)


def test_a_cap_that_is_not_applied_is_seen() -> None:
    model = tiny.model("gemma2", final_logit_softcapping=0.5)
    cut = about.head(model)
    assert cut is not None
    assert not head_agrees(model, about.Head(cut.backbone, cut.projection, cut.vocab, 1.0, None), tiny.VOCAB)


@pytest.mark.parametrize("kind", ATTENDING)
def test_packed_examples_are_isolated(kind: str) -> None:
    model = tiny.model(kind)
    assert packing_isolates(model, tiny.VOCAB)
    assert not model.training


def test_isolation_does_not_hang_on_dropout_or_mode() -> None:
    model = tiny.model("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3).train()
    assert packing_isolates(model, tiny.VOCAB)
    assert model.training
    assert model.transformer.drop.p == 0.3


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "granitemoe"])
def test_experts_isolate_though_the_last_bits_of_their_products_move(kind: str) -> None:
    # Wide enough that the bits do move, by 3e-7; at a width of 32 they stay.
    config = AutoConfig.for_model(
        kind,
        vocab_size=tiny.VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts=8,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    assert packing_isolates(AutoModelForCausalLM.from_config(config).eval(), tiny.VOCAB)


def test_leaks_are_seen() -> None:
    assert not packing_isolates(tiny.model("mamba"), tiny.VOCAB), "state runs on through a row"

    class Leaking(nn.Module):
        """Attends across examples, as every model does whose mask does not know positions."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.model("llama")
            self.config = self.inner.config

        def forward(self, input_ids: torch.Tensor, use_cache: bool, position_ids: object = None) -> object:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    assert not packing_isolates(Leaking(), tiny.VOCAB)

    class Without(Leaking):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:  # type: ignore[override]
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    assert not packing_isolates(Without(), tiny.VOCAB)


def test_dropout_is_set_everywhere_or_refused() -> None:
    model = tiny.model("gpt2")
    about.set_dropout(model, 0.25)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}
    model = tiny.model("llama")
    about.set_dropout(model, 0.25)
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    model = tiny.model("llama")
    for module in model.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0  # JSON configs say 0 as well as 0.0
    about.set_dropout(model, 0.25)
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    with pytest.raises(RecipeError, match="no dropout"):
        about.set_dropout(nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_checkpointed_blocks_are_computed_twice(kind: str) -> None:
    model = tiny.model(kind)
    calls = []
    block = about.blocks(model)[0]
    mlp = next(m for n, m in block.named_modules() if n.endswith("mlp"))
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.arange(8)[None]
    about.checkpoint_blocks(model)
    model.train()(input_ids=ids, use_cache=False).logits.sum().backward()
    assert len(calls) == 2
    with pytest.raises(RecipeError, match="does not support"):
        about.checkpoint_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", sorted(set(tiny.KINDS) | {"qwen2", "olmo2"}))
def test_models_that_are_known_to_be_causal_isolate_what_is_packed_and_attend_in_blocks(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"llama", "llama-tied", "qwen2", "qwen3", "granite", "olmo2"}
    monkeypatch.setitem(tiny.KINDS, kind, tiny.KINDS.get(kind, {"model_type": kind, "num_key_value_heads": 2}))
    model = tiny.model(kind)
    assert about.facts(model, model.config, None).causal == (kind in known)
    if kind not in known:
        return
    assert packing_isolates(model, tiny.VOCAB)
    attend_in_blocks(model)
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    assert made_here(model, rows=1, position_ids=positions) == 2


@pytest.mark.parametrize("change", [{"attention_dropout": 0.1}, {"use_sliding_window": True, "sliding_window": 8}])
def test_windows_and_dropout_are_more_than_causal(change: dict[str, object]) -> None:
    model = tiny.model("qwen3", **{**change, "max_window_layers": 0})
    assert not about.facts(model, model.config, None).causal
