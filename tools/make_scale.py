"""Writes docs/scale/table.md: memory of each GPU and what is exchanged, by engine and number of GPUs.

`make docs` runs it. By the formulas of the forecast, from the shapes of real models; nothing of it is measured.
"""

from collections.abc import Iterator
from pathlib import Path

from fulltune.base.formats import BYTES
from fulltune.base.memory import Forecast, Shape, between
from fulltune.base.records import EngineName, ModelFacts
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.schema import OptimSection

TARGET = Path(__file__).resolve().parent.parent / "docs/scale/table.md"

GPUS = (8, 16, 32, 64, 128, 256, 512)
NODE = 8
"""GPUs of one machine, over which `replicas` shards a model."""
ROOM = 80e9
"""Bytes of the GPUs that are compared with."""
LOAD = Pass(rows=1, width=4096, taught=4096, several=False, longest=4096)

HEAD = """\
# Memory and exchange, by engine and number of GPUs

Made by `python -m tools.make_scale` (`make docs`) from the [forecast of memory](../memory.md); do not edit. Nothing
here is measured: it is what the formulas say of the shapes of Llama 3.1 8B and 70B (their `config.json`), trained in
`bf16-mixed` with AdamW, one row of 4,096 tokens in each micro-batch, blocks checkpointed.

**memory**: GiB of each GPU, as the forecast's interval. **fits**: whether that is within 80 GB: *yes* by its high end,
*no* by its low end, *maybe* between. **exchanged**: GB that each GPU sends in one update of one micro-batch, and
receives as much; each further micro-batch adds the last column. By ring algorithms: of S bytes among W processes,
gathering or scattering sends S * (W - 1) / W, adding up for all of them twice that (Patarasuk and Yuan 2009). Weights
are gathered in bfloat16, gradients added up in float32.
"""


def llama(layers: int, hidden: int, inner: int, heads: int, groups: int) -> ModelFacts:
    """Of the Llama 3.1 family: a vocabulary of 128,256, untied, heads of 128."""
    kv, vocab = groups * 128, 128256
    matrices = 2 * hidden * heads * 128 + 2 * hidden * kv + 3 * hidden * inner
    block = matrices + 2 * hidden
    outside = 2 * vocab * hidden + hidden
    sides = 2 * heads * 128 + 2 * kv + 3 * inner
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=layers * block + outside,
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        context=131072,
        tied_embeddings=False,
        dtype="bfloat16",
        shape=Shape(
            block=block,
            outside=outside,
            tensor=vocab * hidden,
            inner=layers * sides,
            inner_block=sides,
            widest=inner,
            heads=heads,
            repeated=2 * (heads - groups) * 128,
            cut=True,
        ),
    )


MODELS = {"Llama 3.1 8B": llama(32, 4096, 14336, 32, 8), "Llama 3.1 70B": llama(80, 8192, 28672, 64, 8)}


def ways(processes: int) -> Iterator[tuple[str, Way]]:
    """DDP and each form of FSDP2 of so many processes."""
    dtypes = precision_plan("bf16-mixed", OptimSection(), several=False)

    def way(engine: EngineName, *, reshard: bool = True, replicas: int = 1) -> Way:
        return Way(
            engine=engine,
            processes=processes,
            dtypes=dtypes,
            kind="cuda",
            checkpointing="full",
            reshard=reshard,
            replicas=replicas,
        )

    yield "`ddp`", way("ddp")
    yield "`fsdp2`", way("fsdp2")
    yield "`fsdp2`, `reshard: false`", way("fsdp2", reshard=False)
    if processes > NODE:
        yield f"`fsdp2`, `replicas: {processes // NODE}`", way("fsdp2", replicas=processes // NODE)


def exchanged(way: Way, model: ModelFacts) -> tuple[float, float]:
    """Bytes that each process sends in an update of one micro-batch, and more for each further one."""
    gradients = model.parameters * BYTES[way.dtypes.reduction]
    if way.engine == "ddp":
        return 2 * gradients * _part(way.processes), 0.0
    shards = _part(way.shards)
    gathered = model.parameters * way.compute * shards * (2 if way.reshard else 1)
    scattered = gradients * shards
    # Replicas add up the part of the gradients that each of their processes has.
    among = 2 * gradients / way.shards * _part(way.replicas)
    further = gathered + scattered + among if way.reshard else gathered
    return gathered + scattered + among, further


def _part(processes: int) -> float:
    return (processes - 1) / processes


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for name, model in MODELS.items():
        lines += [f"## {name}, {model.parameters:,} parameters", ""]
        lines += ["| GPUs | engine | memory, GiB | fits | exchanged, GB | each further micro-batch, GB |"]
        lines += ["|---:|---|---:|---|---:|---:|"]
        for count in GPUS:
            for told, way in ways(count):
                found = forecast(way, model, LOAD)
                once, further = exchanged(way, model)
                memory = between(found.low, found.high)
                lines.append(f"| {count} | {told} | {memory} | {_fits(found)} | {_gb(once)} | {_gb(further)} |")
        lines.append("")
    return "\n".join(lines)


def _fits(found: Forecast) -> str:
    if found.high <= ROOM:
        return "yes"
    return "no" if found.low > ROOM else "maybe"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
