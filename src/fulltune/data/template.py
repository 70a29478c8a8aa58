"""The model's chat template: text of a conversation exactly as inference will write it, within bounds."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2
from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError
from transformers import PreTrainedTokenizerBase

from fulltune.base.errors import DataError, Fault
from fulltune.data.example import RowFault
from fulltune.data.sandbox import CLOSES, OPENS, Excess, Late, buried, compiled, write
from fulltune.data.veil import Veiling

Turn = Mapping[str, Any]
Marks = Sequence[tuple[int, int]]
"""What `{% generation %}` tags enclose, [start, end) in a text."""

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_EDGES = re.compile(f"[{OPENS}{CLOSES}]")

_SLOW_ROWS = 3
"""After so many that ran out of time it is the template that is at fault: more of them would take days."""

_SHORTEN = "mend the template's loops, or name another in model.chat_template"
_PLAIN = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Tokenizer(Protocol):
    """What we ask of a transformers tokenizer."""

    chat_template: Any
    backend_tokenizer: Any
    split_special_tokens: bool
    bos_token_id: int | None
    eos_token_id: int | None

    def __len__(self) -> int:
        """How many tokens it knows, added ones too."""

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids and offsets of one text or several."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The text of a conversation."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Token ids back to text."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The named special tokens (`bos_token` and so on) as text."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the named special tokens (BOS, EOS and so on)."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Ids of all added tokens, each with its text and whether it is special."""


class Template:
    """Renders turns to text. `name` is what errors call the template by."""

    def __init__(self, tokenizer: Tokenizer, source: str | None, name: str) -> None:
        """Use `source` in place of the tokenizer's own template. DataError if it cannot render a question and answer.

        A tokenizer may have several templates by name. As in transformers, `tool_use` renders rows with tools, and
        `default` all others.
        """
        self.name = name
        self._tokenizer = tokenizer
        self._slow = 0
        self._sources = self._named(source if source is not None else tokenizer.chat_template)
        self._tagged = {text for text in self._sources.values() if _GENERATION.search(text)}
        if self._sources:
            self._try()

    @property
    def source(self) -> str | Mapping[str, str] | None:
        """The template's text; by name if there are several, None if the model has none."""
        alone = self._sources.keys() == {"default"}
        return self._sources["default"] if alone else self._sources or None

    @property
    def digest(self) -> str:
        """Hash of the template's text, or of all of them and their names; empty if the model has none."""
        source = self.source
        if source is None:
            return ""
        text = source if isinstance(source, str) else json.dumps(source, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def exported(self) -> str | Mapping[str, str] | None:
        """As `source`, to ship: without `{% generation %}` tags, which inference engines need not know; same output.

        A neutral block takes their place, so that the white space that `-` trims stays trimmed.
        """
        source = self.source
        if isinstance(source, Mapping):
            return {name: _neutral(text) for name, text in source.items()}
        return None if source is None else _neutral(source)

    def render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), *, prompt: bool) -> str:
        """The text of the turns; with `prompt`, up to where the assistant is to speak. RowFault if refused."""
        return self._bounded(turns, tools, prompt)[0]

    def veiled(self, turns: Sequence[Turn], *, prompt: bool) -> tuple[str, Marks | None]:
        """As `marked`, of turns whose contents are veils. RowFault also if the template looks into one."""
        source = self._source_for(())
        made = compiled(source, kind=Veiling)
        text, edges = self._bounded(turns, (), prompt, made)
        if source in self._tagged and buried(made):
            raise RowFault("template_refused", f"what the tags of {self.name} enclose is not written at once", "")
        return text, list(zip(edges[::2], edges[1::2], strict=True)) if source in self._tagged else None

    def marked(self, turns: Sequence[Turn], tools: Sequence[Turn]) -> tuple[str, Marks | None]:
        """The text of the turns, and where in it lies what `{% generation %}` tags enclose; None if there are none."""
        text, edges = self._bounded(turns, tools, False)
        source = self._source_for(tools)
        if source not in self._tagged:
            return text, None
        if not buried(compiled(source)):
            return text, list(zip(edges[::2], edges[1::2], strict=True))
        shown, _ = self._bounded(turns, tools, False, compiled(source, marking=True))
        if _EDGES.sub("", shown) != text:
            what = f"the generation tags of {self.name} change what it writes, so it cannot be told what they mark"
            raise RowFault("masks_disagree", what, "remove them: what is taught is found without them")
        found: list[tuple[int, int]] = []
        opened: list[int] = []
        for number, edge in enumerate(_EDGES.finditer(shown)):
            if edge[0] == OPENS:
                opened.append(edge.start() - number)
            else:
                found.append((opened.pop(), edge.start() - number))
        return text, sorted(found)

    def _source_for(self, tools: Sequence[Turn]) -> str:
        return self._sources["tool_use" if tools and "tool_use" in self._sources else "default"]

    def _bounded(
        self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool, template: jinja2.Template | None = None
    ) -> tuple[str, list[int]]:
        """As `_text`, and whatever goes wrong is a fault of the row, or of the template."""
        if not self._sources:
            raise DataError(
                "the tokenizer has no chat template, so a conversation has no text",
                where=self.name,
                mend="name a Jinja file in model.chat_template, or start from an instruction-tuned model",
            )
        try:
            return self._text(turns, tools, prompt, template)
        except Excess as fault:
            raise self._excess(fault, len(turns)) from fault
        except UndefinedError as fault:
            raise RowFault(
                "template_undefined", f"{self.name}: {fault.message}", "define it in the template"
            ) from fault
        except Exception as fault:  # a template is foreign code: 1/0 and 'a' + none are up to it
            what = f"{self.name} refuses the conversation: {_said(fault)}"
            raise RowFault("template_refused", what, "change the row, or model.chat_template") from fault

    def _text(
        self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool, template: jinja2.Template | None = None
    ) -> tuple[str, list[int]]:
        """What `apply_chat_template` would write, which has no bounds, and where the edges of tags lie in it."""
        if not turns:
            raise TemplateError("it has no turn")
        variables = {
            "messages": [_turn(turn) for turn in turns],
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": prompt,
            **self._tokenizer.special_tokens_map,
        }
        return write(template or compiled(self._source_for(tools)), variables)

    def _excess(self, fault: Excess, turns: int) -> RowFault | DataError:
        """A row's fault, until so many rows ran out of time that it must be the template's."""
        self._slow += isinstance(fault, Late)
        what = f"{self.name} {fault}, for a conversation of {turns} turns"
        if self._slow < _SLOW_ROWS:
            return RowFault(fault.code, what, _SHORTEN)
        return DataError(
            faults=[Fault(f"{what}, as for {self._slow - 1} rows before", self.name, _SHORTEN, fault.code)]
        )

    def _named(self, found: Any) -> Mapping[str, str]:
        """The templates by name, whichever way they were given."""
        named = dict(found) if isinstance(found, Mapping) else {} if found is None else {"default": found}
        for name, text in named.items():
            if not isinstance(name, str) or not isinstance(text, str):
                what = f"the chat template {name!r} is no text, but {type(text).__name__}"
                raise DataError(what, where=self.name, mend="write the text of a Jinja template there")
        if found is not None and "default" not in named:
            raise DataError(
                f"of {len(named)} chat templates none is named default: {', '.join(named)}",
                where=self.name,
                mend="name one of them default, or name a Jinja file in model.chat_template",
            )
        return named

    def _try(self) -> None:
        """A template that cannot render the plainest conversation is broken, whatever the rows are."""
        plain = [dict(turn) for turn in _PLAIN]
        try:
            wanted = served = self._text(plain, (), False)[0]
            # Only where a tokenizer has code of its own: that of transformers computes constants without bounds.
            if type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
                source = self._sources["default"]
                served = self._tokenizer.apply_chat_template(plain, chat_template=source, tokenize=False)
        except TemplateSyntaxError as fault:
            lines = self._sources["default"].splitlines()
            near = lines[fault.lineno - 1].strip()[:80] if 0 < fault.lineno <= len(lines) else ""
            raise DataError(
                f"the chat template does not parse: {fault.message}: {near}",
                where=f"{self.name}:{fault.lineno}",
                mend="mend the Jinja syntax",
            ) from fault
        except Excess as fault:
            what = f"the chat template {fault}, for a question and its answer"
            raise DataError(faults=[Fault(what, self.name, _SHORTEN, fault.code)]) from fault
        except UndefinedError as fault:
            raise DataError(
                f"the chat template uses what is not defined: {fault.message}",
                where=self.name,
                mend="templates know messages, tools, add_generation_prompt, bos_token, eos_token and the like",
            ) from fault
        except Exception as fault:  # as above
            raise DataError(
                f"the chat template refuses a question and its answer: {_said(fault)}",
                where=self.name,
                mend="use a template for conversations",
            ) from fault
        if served != wanted:
            raise DataError(
                "the tokenizer's own apply_chat_template writes another text with this chat template",
                where=self.name,
                mend="use a tokenizer that renders chat templates as transformers does",
            )


def _neutral(source: str) -> str:
    """The template with a neutral block for every `{% generation %}`."""
    neutral = {None: "if true", "end": "endif"}
    return _GENERATION.sub(lambda tag: f"{{%{tag[1]} {neutral[tag[2]]} {tag[3]}%}}", source)


def _turn(turn: Turn) -> dict[str, Any]:
    """The turn as transformers hands it to a template: without nulls, its reasoning under every name it goes by."""
    kept = {key: value for key, value in turn.items() if value is not None}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _said(fault: Exception) -> str:
    """What a template's fault says, with its kind if it is none of Jinja's."""
    said = " ".join(str(fault).split())[:300]
    return said if isinstance(fault, TemplateError) else f"{type(fault).__name__}: {said}"
