"""What a server of forked runs has imported and done before the first of them, which each would do again."""

import gc

import torch._dynamo  # optimizers import it when they are first made, which takes a second
import transformers.models.gpt2.modeling_gpt2

import fulltune.stages
from tests.faults.jobs import warm_up

__all__ = ["fulltune", "torch", "transformers"]

warm_up()
gc.collect()
gc.freeze()  # a run collects garbage once: not among these objects
