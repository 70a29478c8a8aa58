"""Open what was written, and ask it the same question."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulltune.base import stop
from fulltune.base.errors import DataError
from fulltune.exporting.targets import Target
from fulltune.model.facts import arithmetic

_TOLERANCE = 1e-6
"""Of the largest logit (at least 1): the same weights through the same code, so nothing but the last bit may differ."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a folder was written from."""

    state: Mapping[str, Tensor]
    """As `targets.state_for` made it."""
    model: nn.Module
    """It computes as the trained model does, from whatever weights it is given; its own are not looked at."""
    buffers: Mapping[str, Tensor]
    """Of the trained model."""
    device: str
    code: Mapping[str, Any]
    """What transformers is told of the model's own Python."""


@torch.no_grad()
def verify(folder: Path, written: Written, target: Target, ids: Tensor, tokenizer: Any) -> float:
    """Largest difference of logits between the folder, loaded anew, and the model that it was written from.

    `ids` [1, tokens]. Every weight must be the model's, rounded to the target's number format, to the bit; then both
    compute logits from those weights, which shows whether config and buffers came back too. DataError if weights,
    logits, chat template or tokens differ.
    """
    dtype = cast(torch.dtype, vars(torch)[target.dtype])
    model, code, device = written.model, written.code, written.device
    attention = cast(Any, model).config._attn_implementation
    how = {"dtype": dtype, "attn_implementation": attention, "use_safetensors": True, **code}
    reloaded, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **how
    )
    reloaded = reloaded.to(device)
    stop.check()
    _verify_weights(folder, written.state, reloaded, info)
    stop.check()
    ids = ids.to(device)
    training = model.training
    model.eval()
    with arithmetic(model, dtype):
        found = cast(Tensor, reloaded.eval()(input_ids=ids, use_cache=False).logits).float()
        # One set of weights for both: a second float32 copy of a large model would not fit beside its optimizer.
        inputs = {"input_ids": ids, "use_cache": False}
        kinds = {name: buffer.dtype for name, buffer in reloaded.named_buffers()}
        buffers = {name: buffer.to(kinds.get(name, buffer.dtype)) for name, buffer in written.buffers.items()}
        with torch.compiler.set_stance("force_eager"):  # compiled blocks round in other places
            expected = functional_call(model, {**buffers, **dict(reloaded.named_parameters())}, (), inputs).logits
        expected = expected.float()
    model.train(training)
    difference = float((expected - found).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise _refused(f"its logits differ by {difference:.3g} from those of the trained model", folder)
    _verify_tokens(folder, target, ids.cpu(), tokenizer, code)
    return difference


def _verify_weights(folder: Path, state: Mapping[str, Tensor], reloaded: nn.Module, info: Mapping[str, Any]) -> None:
    """`info`: what transformers did not find, and made anew, which might by chance come out the same."""
    found = {name: value.cpu() for name, value in reloaded.named_parameters()}
    named = found.keys() | {name for name, _ in reloaded.named_buffers()}
    differing = sorted(found.keys() - state.keys()) + sorted(state.keys() - named)
    differing += sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
    differing += [name for name in found if name in state and not torch.equal(state[name], found[name])]
    if differing:
        raise _refused(f"{len(set(differing))} of its weights differ, such as {differing[0]}", folder)


def _verify_tokens(folder: Path, target: Target, ids: Tensor, tokenizer: Any, code: Mapping[str, Any]) -> None:
    """The folder's tokenizer writes and reads as the one that made the training data."""
    own = AutoTokenizer.from_pretrained(folder, **code)
    text = tokenizer.decode(ids[0])
    if own(text)["input_ids"] != tokenizer(text)["input_ids"]:
        raise _refused("its tokenizer makes other tokens than the one used in training", folder)
    template = tokenizer.chat_template if target.template is None else target.template
    # What a template writes besides the rows: the same text of it could name another special token.
    if _templates(own.chat_template) != _templates(template) or own.special_tokens_map != tokenizer.special_tokens_map:
        raise _refused("its chat template writes another text than the one used in training", folder)


def _templates(found: str | Mapping[str, str] | None) -> dict[str, str]:
    """Chat templates by name, with line ends as a text file gives them back."""
    named = {} if found is None else {"default": found} if isinstance(found, str) else found
    return {name: re.sub("\r\n?", "\n", text) for name, text in named.items()}


def _refused(what: str, folder: Path) -> DataError:
    return DataError(
        f"the exported model is not the trained one: {what}",
        where=str(folder),
        mend="please report this with the model's name; the checkpoints are kept",
    )


def probe_ids(ids: NDArray[np.int32], tokens: int = 128) -> Tensor:
    """[1, <= tokens]: the beginning of an example, to ask both models with."""
    return torch.from_numpy(ids[:tokens].astype(np.int64))[None]
