"""A model that is to be asked, and how questions become its tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from fulltune.base.errors import DataError
from fulltune.data.example import Message, RowFault
from fulltune.data.render import Renderer
from fulltune.data.spans import closing
from fulltune.data.template import Template
from fulltune.engine.crew import Crew
from fulltune.model.facts import context


@dataclass(frozen=True, slots=True)
class Examinee:
    """A model with what belongs to it. It is left as it was found."""

    model: nn.Module
    tokenizer: Any
    template: Template
    stop_ids: frozenset[int]
    """What ends an answer by the generation config of model and run."""
    batch_tokens: int
    """Most tokens of a batch, padding and answers included."""
    check: Callable[[], None]
    """Called before every batch: Interrupted where a signal came."""
    crew: Crew | None = None
    """Processes that have the same model, each by itself, among which questions are shared."""

    @property
    def context(self) -> int | None:
        """Longest sequence; None if there is no limit."""
        return context(cast(Any, self.model).config.get_text_config())

    @property
    def stops(self) -> frozenset[int]:
        """All that ends an answer: also the tokenizer's end token, and what the template writes behind an answer."""
        end = self.tokenizer.eos_token_id
        return self.stop_ids | closing(self.template, self.tokenizer) | ({end} if end is not None else set())

    def asks(self, through: Literal["auto", "chat", "plain"], *, answers: bool) -> Literal["chat", "plain"]:
        """Whether questions go through the chat template; DataError if they should and there is none."""
        has = self.template.source is not None
        if through == "chat" and not has:
            raise DataError(
                "the suite asks through the chat template, and this model has none",
                where=self.template.name,
                mend="through: plain, or through: auto",
            )
        if through == "auto":
            return "chat" if has and answers else "plain"
        return through


class Spelling:
    """Text -> ids, with what the tokenizer puts before every text; what a row spells never becomes a control token."""

    def __init__(self, asked: Examinee, way: Literal["chat", "plain"]) -> None:
        self._tokenizer = tokenizer = asked.tokenizer
        plain = list(tokenizer("a", verbose=False)["input_ids"])
        first, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._begins = [first] if first is not None and plain[:1] == [first] else []
        # A first token has nothing before it to be predicted from; an end token is what parts documents (as lm-eval).
        self._anchor = self._begins or [token for token in (first, end) if token is not None][:1]
        self._renderer = None
        if way == "chat":
            self._renderer = Renderer(
                tokenizer,
                asked.template,
                supervise="assistant",
                max_length=1,
                over_length="error",
                stop_ids=asked.stop_ids,
            )

    def prompt(self, turns: Sequence[Message], text: str, where: str) -> list[int]:
        """Ids of a question up to where the model is to speak; DataError if the template refuses it."""
        if self._renderer is None:
            return [*self._begins, *self._encoded(text)["input_ids"]]
        try:
            return self._renderer.prompt(turns)
        except RowFault as fault:
            raise DataError(fault.what, where=where, mend=fault.mend or "change the question") from fault

    def followed(self, prompt: Sequence[int], text: str, separator: str, target: str) -> tuple[list[int], int]:
        """Ids of a question and a text behind it, and the place of the text's first token.

        `prompt`: the ids of the question, `text`: the question itself; empty ones if there is none. Without a template
        both are encoded together, as the model has seen texts, and a token that spans the border is of the text.
        """
        if self._renderer is not None:
            return [*prompt, *self._encoded(target)["input_ids"]], len(prompt)
        if not text:
            return [*self._anchor, *self._encoded(target)["input_ids"]], len(self._anchor)
        made = self._encoded(text + separator + target, return_offsets_mapping=True)
        ids = [*self._begins, *made["input_ids"]]
        border = next((at for at, (_, end) in enumerate(made["offset_mapping"]) if end > len(text)), len(ids))
        return ids, len(self._begins) + border

    def _encoded(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False, **options)


def batches(lengths: Sequence[int], budget: int, *, alike: bool = False) -> Iterator[list[int]]:
    """Indices, the longest first, as many together as keep rows x longest within a budget; one in any case.

    `alike`: only rows of equal length together.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > budget or (alike and lengths[index] != longest)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
