"""The model's chat template: text of a conversation exactly as inference will write it."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError

from fulltune.base.errors import DataError
from fulltune.data.example import RowFault

Turn = Mapping[str, Any]

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


class Tokenizer(Protocol):
    """What we ask of a transformers tokenizer."""

    chat_template: Any
    eos_token_id: int | None

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids and offsets of one text or several."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The text of a conversation."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Token ids back to text."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the named special tokens (BOS, EOS and so on)."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Ids of all added tokens, each with its text and whether it is special."""


class Template:
    """Renders turns to text. `name` is what errors call the template by."""

    def __init__(self, tokenizer: Tokenizer, source: str | None, name: str) -> None:
        """Use `source` in place of the tokenizer's own template. DataError if it does not parse or renders nothing."""
        self.name = name
        self._tokenizer = tokenizer
        self.source = source if source is not None else tokenizer.chat_template
        if isinstance(self.source, Mapping):
            self.source = self.source["default"]
        if self.source is not None:
            self._try()

    @property
    def digest(self) -> str:
        """Hash of the template's text; empty if the model has none."""
        return hashlib.sha256(self.source.encode()).hexdigest() if self.source is not None else ""

    @property
    def exported(self) -> str | None:
        """The text to ship: without `{% generation %}` tags, which inference engines need not know; same output.

        A neutral block takes their place, so that the white space that `-` trims stays trimmed.
        """
        if self.source is None:
            return None
        neutral = {None: "if true", "end": "endif"}
        return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {neutral[tag[2]]} {tag[3]}%}}", self.source)

    def render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), *, prompt: bool) -> str:
        """The text of the turns; with `prompt`, up to where the assistant is to speak. RowFault if refused."""
        if self.source is None:
            raise DataError(
                "the tokenizer has no chat template, so a conversation has no text",
                where=self.name,
                mend="name a Jinja file in model.chat_template, or start from an instruction-tuned model",
            )
        try:
            return self._text(turns, tools, prompt)
        except UndefinedError as fault:
            raise RowFault(
                "template_undefined", f"{self.name}: {fault.message}", "define it in the template"
            ) from fault
        except TemplateError as fault:
            what = f"{self.name} refuses the conversation: {fault.message}"
            raise RowFault("template_refused", what, "change the row, or model.chat_template") from fault

    def _text(self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=self.source,
            add_generation_prompt=prompt,
            tokenize=False,
        )
        return text

    def _try(self) -> None:
        """A template that cannot render the plainest conversation is broken, whatever the rows are."""
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            self._text(turns, (), False)
        except TemplateSyntaxError as fault:
            lines = str(self.source).splitlines()
            near = lines[fault.lineno - 1].strip()[:80] if 0 < fault.lineno <= len(lines) else ""
            raise DataError(
                f"the chat template does not parse: {fault.message}: {near}",
                where=f"{self.name}:{fault.lineno}",
                mend="mend the Jinja syntax",
            ) from fault
        except UndefinedError as fault:
            raise DataError(
                f"the chat template uses what is not defined: {fault.message}",
                where=self.name,
                mend="templates know messages, tools, add_generation_prompt, bos_token, eos_token and the like",
            ) from fault
        except TemplateError as fault:
            raise DataError(
                f"the chat template refuses a question and its answer: {fault.message}",
                where=self.name,
                mend="use a template for conversations",
            ) from fault
