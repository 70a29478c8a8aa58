"""Open what was written, and ask it the same question."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulltune.base.errors import DataError
from fulltune.exporting.targets import Target

_TOLERANCE = 1e-6
"""Of the largest logit (at least 1): the same weights through the same code, so nothing but the last bit may differ."""

_CONVERSATION = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": "An answer."}]


@torch.no_grad()
def verify(folder: Path, model: nn.Module, target: Target, ids: Tensor, tokenizer: Any, *, code: bool) -> float:
    """Largest difference of logits between the folder, loaded anew, and the weights it was written from.

    `ids` [1, tokens]. The weights are compared as written, that is rounded to the target's number format. `code`:
    whether the model's own Python may run. DataError if logits, chat template or tokens differ.
    """
    dtype = cast(torch.dtype, vars(torch)[target.dtype])
    device = next(model.parameters()).device
    rounded = {name: p.to(dtype).float() for name, p in model.named_parameters()}
    training = model.training
    model.eval()
    expected = _logits(functional_call(model, rounded, (), {"input_ids": ids.to(device), "use_cache": False}))
    model.train(training)
    attention = cast(Any, model).config._attn_implementation
    reloaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, trust_remote_code=code
    ).to(device)
    found = _logits(reloaded.eval()(input_ids=ids.to(device), use_cache=False))
    difference = float((expected - found).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise _refused(f"its logits differ by {difference:.3g} from those of the trained weights", folder)
    _verify_tokens(folder, target, ids, tokenizer, code)
    return difference


def _logits(output: Any) -> Tensor:
    return cast(Tensor, output.logits).float().cpu()


def _verify_tokens(folder: Path, target: Target, ids: Tensor, tokenizer: Any, code: bool) -> None:
    """The folder's tokenizer writes and reads as the one that made the training data."""
    own = AutoTokenizer.from_pretrained(folder, trust_remote_code=code)
    text = tokenizer.decode(ids[0])
    if own(text)["input_ids"] != tokenizer(text)["input_ids"]:
        raise _refused("its tokenizer makes other tokens than the one used in training", folder)
    template = target.template if target.template is not None else tokenizer.chat_template
    if template is None:
        return
    for prompt in (False, True):
        written = own.apply_chat_template(_CONVERSATION, tokenize=False, add_generation_prompt=prompt)
        wanted = tokenizer.apply_chat_template(
            _CONVERSATION, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        if written != wanted:
            raise _refused("its chat template writes another text than the one used in training", folder)


def _refused(what: str, folder: Path) -> DataError:
    return DataError(
        f"the exported model is not the trained one: {what}",
        where=str(folder),
        mend="please report this with the model's name; the checkpoints are kept",
    )


def probe_ids(ids: NDArray[np.int32], tokens: int = 128) -> Tensor:
    """[1, <= tokens]: the beginning of an example, to ask both models with."""
    return torch.from_numpy(ids[:tokens].astype(np.int64))[None]
