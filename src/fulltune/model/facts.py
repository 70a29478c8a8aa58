"""All questions to foreign models, in one file: what they are built of, where their head is, what they can switch."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulltune.base.errors import RecipeError
from fulltune.base.memory import Shape
from fulltune.base.records import ModelFacts
from fulltune.model.kept import products_kept

_STATE_SPACE = ("A_log", "dt_bias")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length")
_CAUSAL = frozenset(
    {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM"}
)
"""Architectures of transformers whose attention is causal and no more, unless their config has windows or dropout."""
_HEADS = ("num_attention_heads", "n_head", "num_heads")


def facts(model: nn.Module, config: Any, dtype: str | None) -> ModelFacts:
    """Count and read, no more; works on the meta device. `dtype`: that of the files, if they say."""
    text = config.get_text_config()
    embedding = cast(Any, model).get_input_embeddings().weight
    return ModelFacts(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=len(blocks(model)),
        hidden=embedding.shape[1],
        vocab=embedding.shape[0],
        context=context(text),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        dtype=dtype or str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch."),
        shape=shape(model, text),
        checkpoints=checkpoints(model),
        causal=plainly_causal(model, text),
    )


def plainly_causal(model: nn.Module, config: Any) -> bool:
    """Whether attention is causal and no more: of the architectures that we know, as transformers has them."""
    known = type(model).__name__ in _CAUSAL and type(model).__module__.startswith("transformers.")
    windows = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ())
    return known and not windows and not getattr(config, "attention_dropout", 0.0)


def context(config: Any) -> int | None:
    """Longest sequence that the model's positions were made for; None if it has no such limit."""
    return _number(config, _CONTEXT) or None


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers, bottom first: the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def mlps(model: nn.Module) -> list[nn.Module]:
    """The MLP of each block, that which has `mlp` as its name; none if a block has none, or experts."""
    found = [getattr(block, "mlp", None) for block in blocks(model)]
    plain = [module for module in found if isinstance(module, nn.Module) and not _has_experts(module)]
    return plain if len(plain) == len(found) else []


def _has_experts(module: nn.Module) -> bool:
    return any(isinstance(one, nn.ModuleList) for one in module.modules()) or any(
        weight.ndim > 2 for weight in module.parameters()
    )


def shape(model: nn.Module, config: Any) -> Shape:
    """Counted on the modules, so that any architecture has one; works on the meta device."""
    repeated, hidden = blocks(model), cast(Any, model).get_input_embeddings().weight.shape[1]
    sizes = [sum(p.numel() for p in block.parameters()) for block in repeated]
    chosen = _chosen_experts(config)
    sides = [[side for p in block.parameters() for side in _inner_sides(p, hidden, chosen)] for block in repeated]
    heads = _number(config, _HEADS)
    projected = [model.get_parameter(name).shape for name in matrices(model)]
    groups = _number(config, ("num_key_value_heads",)) or heads
    return Shape(
        block=max(sizes, default=0),
        outside=sum(p.numel() for p in model.parameters()) - sum(sizes),
        tensor=max((p.numel() for p in model.parameters()), default=0),
        inner=sum(map(sum, sides)),
        inner_block=max(map(sum, sides), default=0),
        widest=max((side for each in sides for side in each), default=0),
        heads=heads,
        repeated=2 * max(0, heads - groups) * (head_size(config) or hidden // max(1, heads)),
        cut=head(model) is not None,
        matrices=sum(rows * columns for rows, columns in projected),
        longer=sum(map(max, projected)),
        shorter=sum(map(min, projected)),
        mlps=sum(side for one in mlps(model) for p in one.parameters() for side in _inner_sides(p, hidden, chosen)),
    )


def head_size(config: Any) -> int:
    """Numbers of a query; 0 where a config does not say it."""
    return _number(config, ("head_dim",)) or _number(config, ("hidden_size", "n_embd")) // max(
        1, _number(config, _HEADS)
    )


def _inner_sides(weight: Tensor, hidden: int, chosen: int) -> list[int]:
    """Of a matrix, the side that is no hidden state, or both; of the matrices of experts those that a token sees."""
    times, sides = (1, list(weight.shape)) if weight.ndim == 2 else (chosen, list(weight.shape[1:]))
    if len(sides) != 2 or min(sides) < 2:
        return []
    if hidden in sides:
        sides.remove(hidden)
    return sides * times


def _chosen_experts(config: Any) -> int:
    return _number(config, ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k")) or 1


def _number(config: Any, names: tuple[str, ...]) -> int:
    """The first of these that a config has as a number; 0 if it has none."""
    for name in names:
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return 0


@dataclass(frozen=True, slots=True)
class Head:
    """A model cut in two: `backbone` gives hidden states, `logits` what the model itself would make of them.

    Plain values, not a module, so that parameters stay where they are. Holds for models that end in a projection
    and at most a scale and a soft cap; `probe.head_agrees` tells whether this is one.
    """

    backbone: nn.Module
    projection: nn.Module
    vocab: int
    scale: float
    softcap: float | None

    @property
    def linear(self) -> Tensor | None:
        """The weight [vocab, hidden], if the head is a product with it and a scale."""
        projection = self.projection
        bare = type(projection) is nn.Linear and projection.bias is None and not self.softcap
        return cast(Tensor, projection.weight) if bare else None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab] in float32."""
        logits = cast(Tensor, self.projection(hidden)).float() * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


def head(model: nn.Module) -> Head | None:
    """Where the model's head is, by its config's names; None if it has no output projection. To be probed."""
    foreign = cast(Any, model)
    backbone, projection = foreign.get_decoder(), foreign.get_output_embeddings()
    if backbone is None or backbone is model or projection is None:
        return None
    config = foreign.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    return Head(
        backbone, projection, projection.weight.shape[0], scale, getattr(config, "final_logit_softcapping", None)
    )


def arithmetic(model: nn.Module, dtype: torch.dtype = torch.float32) -> AbstractContextManager[Any]:
    """A context in which a model of this number format can be asked: flash attention refuses float32."""
    flash = str(cast(Any, model).config._attn_implementation).startswith(("flash", "varlen"))
    return torch.autocast("cuda", torch.bfloat16) if flash and dtype == torch.float32 else nullcontext()


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def undecayed(model: nn.Module) -> frozenset[str]:
    """Parameters that weight decay must leave alone.

    Vectors, whatever their shape (norms), and biases, of which experts have a matrix; embeddings, whose rows for
    tokens that the data lacks would shrink without a gradient to hold them; and the decay rates of state space
    models, which are no matrices though they have two dimensions. A head that is tied to the embedding is the
    embedding.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    return frozenset(
        name
        for name, p in model.named_parameters()
        if sum(width > 1 for width in p.shape) < 2
        or id(p) in embeddings
        or name.rpartition(".")[2] in _STATE_SPACE
        or "bias" in name.rpartition(".")[2]
    )


def matrices(model: nn.Module) -> frozenset[str]:
    """Weights in repeated modules by which hidden states are multiplied: no embedding, no head, no stack of experts."""
    repeated = {id(p) for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters()}
    other = undecayed(model)
    return frozenset(n for n, p in model.named_parameters() if p.ndim == 2 and id(p) in repeated and n not in other)


def layers(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 for embeddings, 1 for the lowest block, and one more for each above it.

    The highest number is that of what lies in no block: the last norm, and the head if it is not the embedding.
    """
    lowest = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    repeated = blocks(model)
    inside = {id(p): number for number, block in enumerate(repeated, 1) for p in block.parameters()}
    top = len(repeated) + 1
    return {name: 0 if id(p) in lowest else inside.get(id(p), top) for name, p in model.named_parameters()}


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every place where a dropout probability stands: in nn.Dropout, or as a number in an attention module."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
            continue
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float | int) and not isinstance(value, bool):
                yield module, name


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout probability; RecipeError if the model has none."""
    places = list(_dropouts(model))
    if not places:
        raise RecipeError("this model has no dropout to set", where="model.dropout", mend="leave model.dropout out")
    for module, name in places:
        setattr(module, name, probability)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout inside, as before behind."""
    before = [(module, name, getattr(module, name)) for module, name in _dropouts(model)]
    for module, name, _ in before:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def checkpoints(model: nn.Module) -> bool:
    """Whether blocks can be made again in the backward pass; works on the meta device."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def checkpoint_blocks(model: nn.Module, *, keep_products: bool = False) -> None:
    """Make every block again in the backward pass; RecipeError if the model cannot.

    `keep_products`: results of matrix products and of attention are kept the first time.
    """
    foreign = cast(Any, model)
    if not checkpoints(model):
        raise RecipeError(
            f"{type(model).__name__} does not support gradient checkpointing",
            where="memory.checkpointing",
            mend="memory.checkpointing=none",
        )
    # transformers 5.23 renamed it and warns of the old name; 5.17 knows only that.
    enable = getattr(foreign, "activation_checkpointing_enable", None) or foreign.gradient_checkpointing_enable
    enable({"use_reentrant": False} | ({"context_fn": products_kept()} if keep_products else {}))
    if keep_products and not any(map(_keeps_products, model.modules())):  # code of the hub that reads no settings
        raise RecipeError(
            f"{type(model).__name__} makes blocks again by code of its own, which keeps nothing",
            where="memory.checkpointing",
            mend="memory.checkpointing=full",
        )


def require_inner_checkpoints(model: nn.Module) -> None:
    """RecipeError if blocks are made again around their hooks, which would see all that is not to be kept."""
    if any(type(block).__call__ is not nn.Module.__call__ for block in blocks(model)):
        raise RecipeError(
            "this transformers makes blocks again from outside, and all that they make would wait on the host",
            where="memory.offload",
            mend="transformers 5.23 or later, or memory.checkpointing=none",
        )


def _keeps_products(module: nn.Module) -> bool:
    """Whether what makes this module again was told to keep them."""
    return "context_fn" in getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})


def may_lack(model: nn.Module) -> bool:
    """Whether some weights may be missing in its files, for its own code makes them."""
    return bool(getattr(model, "_keys_to_ignore_on_load_missing", None))
