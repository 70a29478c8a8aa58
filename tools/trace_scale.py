"""Writes docs/scale/traced.md: the training step of real shapes, in up to 512 shards, traced without weights.

`python -m tools.trace_scale` (a quarter of an hour). The model, our layout, objective and optimizer run as they do in
training, one process of many, on torch's fake tensors (shapes without memory) and its fake process group (which counts
nobody else). What is exchanged is written down, and held against the formulas of tools/make_scale.py.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from fulltune.base.records import ModelFacts
from fulltune.batch import Batch
from fulltune.engine.contract import World
from fulltune.engine.crew import Alone
from fulltune.engine.sharded import Sharded
from fulltune.model.facts import blocks, checkpoint_blocks, head, keeps_logits
from fulltune.objectives import NextToken
from fulltune.optim.groups import Parting, groups
from fulltune.optim.optimizers import make
from tools.make_scale import LOAD, MODELS, exchanged, ways

TARGET = Path(__file__).resolve().parent.parent / "docs/scale/traced.md"

HEAD = """\
# The sharded step, traced

Made by `python -m tools.trace_scale`; do not edit. The real configs (all layers, all widths) run one update of 4,096
tokens in `bf16-mixed`, blocks checkpointed, as one process of so many: fulltune's own layout, objective and AdamW, on
torch's fake tensors, which have shapes and no memory, with a process group that reaches nobody. **held**: parameters in
this process, of which all processes together have those of the model (and what fills up uneven rows). **gathered**,
**scattered**, **added up**: calls of all-gather, reduce-scatter and all-reduce. **sent**: GB by ring algorithms, as in
[the table](table.md), whose figure stands beside it.

| model | GPUs | engine | held | gathered | scattered | added up | sent, GB | by the table, GB |
|---|---:|---|---:|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One line: a model, how many processes, in how many groups that have it whole."""

    model: str
    processes: int
    replicas: int = 1
    reshard: bool = True

    def __str__(self) -> str:
        told = "" if self.reshard else ", `reshard: false`"
        return "`fsdp2`" + told + (f", `replicas: {self.replicas}`" if self.replicas > 1 else "")


CASES = (
    Case("Llama 3.1 8B", 8),
    Case("Llama 3.1 8B", 8, reshard=False),
    Case("Llama 3.1 8B", 64, replicas=8),
    Case("Llama 3.1 8B", 512),
    Case("Llama 3.1 70B", 64),
    Case("Llama 3.1 70B", 512, replicas=64),
    Case("Llama 3.1 70B", 512),
)


@dataclass(frozen=True, slots=True)
class Traced:
    """What one process held and exchanged."""

    held: int
    calls: dict[str, int]
    sent: float
    """Bytes."""


_RINGS = {"allgather": 1.0, "reduce_scatter": 1.0, "allreduce": 2.0}
"""How often a ring sends all of it."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts collectives, and what a ring of their group would send."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = dict.fromkeys(_RINGS, 0)
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kind, _, operation = func.name().partition("::")
        if kind == "c10d":
            name = next((name for name in _RINGS if name in operation.replace("_all", "all")), None)
            if name is None:
                raise AssertionError(f"an exchange that is not counted: {func.name()}")
            tensors = [one for one in args if isinstance(one, torch.Tensor)]
            tensors += [one for many in args if isinstance(many, list) for one in many]
            whole = max(one.numel() * one.element_size() for one in tensors)
            group = next(dist.ProcessGroup.unbox(one) for one in args if isinstance(one, torch.ScriptObject))
            self.calls[name] += 1
            self.sent += _RINGS[name] * whole * (group.size() - 1) / group.size()
        return func(*args, **(kwargs or {}))


class _OneOfMany(Alone):
    """A crew that says how many there are; nobody is asked anything."""

    def __init__(self, size: int) -> None:
        self.size = size


def trace(about: ModelFacts, case: Case, *, tokens: int = LOAD.tokens) -> Traced:
    """One update of a Llama of this shape."""
    with _fake(case.processes):
        heads = about.shape.heads
        config = AutoConfig.for_model(
            "llama",
            hidden_size=about.hidden,
            intermediate_size=about.shape.widest,
            num_hidden_layers=about.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads - about.shape.repeated // (2 * 128),
            head_dim=128,
            vocab_size=about.vocab,
            tie_word_embeddings=about.tied_embeddings,
            max_position_embeddings=max(tokens, 8192),
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        assert sum(parameter.numel() for parameter in model.parameters()) == about.parameters
        return _update(model, case, tokens)


def _update(model: Any, case: Case, tokens: int) -> Traced:
    objective = NextToken(model, head(model), keeps_logits=keeps_logits(model))
    layout = Sharded(
        World(0, case.processes, "cpu"),
        _OneOfMany(case.processes),
        blocks(model),
        reshard=case.reshard,
        replicas=case.replicas,
        compute=torch.bfloat16,
    )
    checkpoint_blocks(model)
    with FakeTensorMode(allow_non_fake_inputs=True), patch("fulltune.engine.sharded.init_device_mesh", _real_mesh):
        laid = layout.lay(objective)
        held = sum(cast(DTensor, parameter).to_local().numel() for parameter in laid.parameters())
        optimizer = make(
            "adamw",
            groups(laid.named_parameters(), Parting(undecayed=frozenset())),
            lr=1e-5,
            weight_decay=0.0,
            options={},
        )
        ids = torch.zeros(1, tokens, dtype=torch.long)
        taught = torch.arange(tokens)
        batch = Batch(
            ids=ids, labels=ids, weights=torch.ones(1, tokens), positions=None, taught=taught, examples=(0,),
            lengths=(tokens,), weight=float(tokens),
        )  # fmt: skip
        with _Watch() as watch:
            with torch.autocast("cpu", torch.bfloat16), layout.exchanging(last=True):
                total = sum(laid(batch).values())
                torch.autograd.backward(cast(torch.Tensor, total))
            optimizer.step()
    return Traced(held, watch.calls, watch.sent)


def _real_mesh(*words: Any, **named: Any) -> Any:
    """A mesh reads the ranks that it is made of, so they must be numbers."""
    with unset_fake_temporarily():
        return init_device_mesh(*words, **named)


@contextmanager
def _fake(processes: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def by_table(about: ModelFacts, case: Case) -> float:
    """Bytes that the formulas say for the same."""
    for _, way in ways(case.processes):
        if way.engine == "fsdp2" and (way.reshard, way.replicas) == (case.reshard, case.replicas):
            return exchanged(way, about)[0]
    raise AssertionError(f"the table has no such line: {case}")


def main() -> None:
    """Trace all, and write the page."""
    lines = []
    for case in CASES:
        about = MODELS[case.model]
        found = trace(about, case)
        least = math.ceil(about.parameters / (case.processes // case.replicas))
        assert least <= found.held <= 1.01 * least, f"{case}: {found.held:,} parameters, not {least:,}"
        calls = " | ".join(str(found.calls[name]) for name in _RINGS)
        told, formula = (f"{size / 1e9:,.1f}" for size in (found.sent, by_table(about, case)))
        lines.append(f"| {case.model} | {case.processes} | {case} | {found.held:,} | {calls} | {told} | {formula} |")
        print(lines[-1], file=sys.stderr, flush=True)
    TARGET.write_text(HEAD + "\n".join(lines) + f"\n\nTraced with torch {torch.__version__}.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
