"""A model that is being trained: what the benchmark of saving saves, and the updates that go on beside it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fulltune.base.formats import PrecisionPlan
from fulltune.base.records import Precision
from fulltune.batch import Batch
from fulltune.engine.contract import Engine, MakeOptimizer, World
from fulltune.engine.native import NativeEngine
from fulltune.engine.single import Single
from fulltune.model.facts import head, keeps_logits, undecayed
from fulltune.objectives import NextToken
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import OptimSection

SHAPES: Mapping[str, Mapping[str, int]] = {
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "300m": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
    },
    "small": {
        "vocab_size": 32000,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Of random Llamas with tied embeddings; the first is SmolLM-135M's."""
_RATE = 1e-5

MakeEngine = Callable[[Any, NextToken, MakeOptimizer, PrecisionPlan], Engine]


class Bed:
    """Model, optimizer and engine, and one batch that is learned again and again."""

    def __init__(
        self,
        shape: str,
        device: str,
        precision: Precision,
        *,
        rows: int,
        tokens: int,
        among: MakeEngine | None = None,
        changes: Mapping[str, int] | None = None,
    ) -> None:
        """`among`: makes the engine of a model among several processes. `changes`: of the shape's sizes."""
        torch.manual_seed(0)
        sizes = {**SHAPES[shape], "max_position_embeddings": max(tokens, 2048), **(changes or {})}
        self.model: Any = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
        self._device, self._batch = device, _batch(rows, tokens, sizes["vocab_size"])
        objective = NextToken(self.model, head(self.model), keeps_logits=keeps_logits(self.model))
        made: list[torch.optim.Optimizer] = []

        def optimizer(named: Any) -> torch.optim.Optimizer:
            grouped = groups(named, Parting(undecayed=undecayed(self.model)))
            made.append(make("adamw", grouped, lr=_RATE, weight_decay=0.01, options={}))
            return made[0]

        plan = precision_plan(precision, OptimSection(), several=False)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        """How many there are; a tied one counts once."""
        self.engine: Engine
        if among is None:
            layout = Single(World(rank=0, size=1, device=device))
            self.engine = NativeEngine(self.model, objective, optimizer, layout, clip=1.0, precision=plan)
        else:
            self.engine = among(self.model, objective, optimizer, plan)
        self.optimizer = made[0]

    def update(self) -> float:
        """Learn the batch once more; the seconds that it took."""
        begun = self.now()
        self.passes()
        self.step()
        return self.now() - begun

    def passes(self) -> None:
        """Forward and backward; of several processes each has an equal part in the loss."""
        with self.engine.micro(last=True):
            loss = self.engine.forward(self._batch)["next_token"] / self._batch.weight
            self.engine.backward(loss / self.engine.world.size)

    def step(self) -> None:
        """The optimizer's."""
        if not self.engine.update([_RATE] * len(self.optimizer.param_groups)).applied:
            raise ArithmeticError("the gradient is not finite")

    def now(self) -> float:
        """Seconds, once the device has done what it was told."""
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def _batch(rows: int, tokens: int, vocab: int) -> Batch:
    """Random tokens, all of them taught."""
    ids = torch.randint(vocab, (rows, tokens))
    return Batch(
        ids=ids,
        labels=torch.randint(vocab, (rows, tokens)),
        weights=torch.ones(rows, tokens),
        positions=None,
        taught=torch.arange(rows * tokens),
        examples=tuple(range(rows)),
        lengths=(tokens,) * rows,
        weight=float(rows * tokens),
    )
