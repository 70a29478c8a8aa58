"""What is traded for memory, as a recipe says it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fulltune.recipe.kinds import Count, Section


class MemorySection(Section):
    """What is traded for memory."""

    checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Gradient checkpointing: `full` makes every block again in the backward pass in place of keeping it, `selective`
    all of it but matrix products and attention, whose results are kept. `auto`: the first of `none`, `selective` and
    `full` that fits by the forecast; smaller micro-batches come first while they fill the device (docs/memory.md).
    """
    mlp_tile: Count | None = None
    """Tokens that the MLP of a block computes at once, such as 1024: what it makes of them is made again in the
    backward pass, tile by tile, so that in long sequences it takes memory for one tile only. By default all at once.
    """
    offload: Literal["none", "activations", "moments", "both"] = "none"
    """Of a GPU: `activations` lets what blocks keep for the backward pass wait on the host, and brings it back block by
    block; of blocks that are made again, their inputs. `moments` lets the optimizer's wait there from one update to the
    next, each weight's on their way while the one before it is moved. On a CPU it would change nothing, and is refused.
    """
    budget_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """GiB that each process may have at most of its GPU; without one, all processes of a machine together of its
    memory. By default what there is. Engine, micro-batches and checkpointing are chosen by it, what cannot fit is
    refused, and on a GPU no more is taken.
    """

    @model_validator(mode="after")
    def _tiles_are_made_again(self) -> Self:
        if self.mlp_tile is not None and self.checkpointing == "selective":
            raise ValueError(
                "memory.checkpointing: selective keeps what matrix products give, and memory.mlp_tile makes those of "
                "MLPs again; take full, none or auto"
            )
        if self.mlp_tile is not None and self.activations_wait:
            raise ValueError(
                "memory.mlp_tile and memory.offload: tiles of MLPs keep nothing that could wait on the host"
            )
        return self

    @property
    def activations_wait(self) -> bool:
        """Whether what blocks keep waits on the host."""
        return self.offload in ("activations", "both")

    @property
    def moments_wait(self) -> bool:
        """Whether moments do."""
        return self.offload in ("moments", "both")
