"""What is traded for memory, as a recipe says it."""

from typing import Annotated, Literal

from pydantic import Field

from fulltune.recipe.kinds import Section


class MemorySection(Section):
    """What is traded for memory."""

    checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Gradient checkpointing: `full` makes every block again in the backward pass in place of keeping it, `selective`
    all of it but matrix products and attention, whose results are kept. `auto`: the first of `none`, `selective` and
    `full` that fits by the forecast; smaller micro-batches come first while they fill the device (docs/memory.md).
    """
    offload: Literal["none", "activations"] = "none"
    """Of a GPU: `activations` lets what blocks keep for the backward pass wait on the host, and brings it back block by
    block; of blocks that are made again, their inputs. On a CPU it would change nothing, and is refused.
    """
    budget_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """GiB that each process may have at most of its GPU; without one, all processes of a machine together of its
    memory. By default what there is. Engine, micro-batches and checkpointing are chosen by it, what cannot fit is
    refused, and on a GPU no more is taken.
    """
