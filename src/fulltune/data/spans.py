"""Where in a conversation's text the turns lie that the assistant must produce: two methods, which must agree.

Incremental rendering asks the template twice for a turn: for the prompt that would call for it, and for the
conversation up to its end. What the second adds to the first, up to the stop token, is what the model must produce
at inference: the turn's *own part*. Where the template also marks what is the assistant's by `{% generation %}`, its
marks must enclose the same characters; white space and control tokens behind the stop token are nobody's.

A template that rewrites history (Qwen3 strips the thoughts of earlier turns) shows an earlier turn differently once
others follow. The rule (`docs/decisions/0009-history-that-is-rewritten.md`): a turn whose own part stands unchanged
in the whole text is taught there; a turn that was changed is shown as inference shows it, and not taught.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.data.example import RowFault
from fulltune.data.outlines import Shown
from fulltune.data.sandbox import OPENS
from fulltune.data.spelling import Speller
from fulltune.data.template import Marks, Template, Tokenizer

HISTORY = "history_rewritten"
"""Note: a turn looks otherwise once others follow, and is not taught in this example."""
CONTEXT = "context_rewritten"
"""Note: a turn is taught, but what stands before it looked otherwise when it was to be produced."""

_ANSWER = "answer"
_PLAIN: tuple[Mapping[str, str], ...] = (
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": _ANSWER},
)


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation's text, where in it each taught turn lies ([start, end), by its index), and what was noticed."""

    text: str
    spans: Mapping[int, tuple[int, int]]
    notes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a template ends the last turn of a conversation, learned from the plainest one.

    `trailer` closes the conversation and not the turn (Phi-3 writes eos there), so no turn is taught to produce it.
    `marker` begins the user's next turn; where it is a stop token of inference and the template writes no other
    (GLM), the assistant must produce it to end its turn.
    """

    trailer: str = ""
    marker: str = ""


class Spans:
    """Finds the taught turns of conversations in one template's texts."""

    def __init__(self, template: Template, speller: Speller, known: Collection[int]) -> None:
        """`known`: ids that end generation at inference."""
        self._template, self._speller, self._known = template, speller, frozenset(known)
        self._ending = self._learn() if template.source is not None else Ending()

    def find(self, turns: Sequence[Any], tools: Sequence[Any], wanted: Sequence[int], shown: Shown) -> Found:
        """The turns named by `wanted`, which are the assistant's, in the text of all of them and its marks.

        RowFault if one cannot be taught as it stands.
        """
        text, marks, ends = shown.text, shown.marks, shown.ends
        spans: dict[int, tuple[int, int]] = {}
        notes: set[str] = set()
        for index in wanted:
            head, upto = self._around(turns, tools, index, shown.text, ends.get(index))
            if not upto.startswith(head):
                raise self._unlike(index, head, upto)
            own = self._own(upto[len(head) :])
            start: int | None = len(head)
            if not text.startswith(head + (own or upto[len(head) :])):
                start = self._elsewhere(turns, tools, index, (head, upto, own, text))
                notes.add(HISTORY if start is None else CONTEXT)
            if start is None:
                continue
            end = start + len(own or upto[len(head) :])
            if marks is not None:
                self._require_same(index, text, (start, end), marks)
            if not own:
                marker = self._marker(turns[index], text[end:], index == len(turns) - 1)
                text, end = text[:end] + marker + text[end + len(marker) :], end + len(marker)
            spans[index] = start, end
        whole = HISTORY not in notes and all(i in spans for i, turn in enumerate(turns) if turn["role"] == "assistant")
        for mark in marks or () if whole else ():
            if not any(a < mark[1] and b > mark[0] for a, b in spans.values()) and self._letters(text[slice(*mark)]):
                raise self._disagreement("what is no answer", [mark], "nothing there")
        return Found(text, spans, frozenset(notes))

    def _around(
        self, turns: Sequence[Any], tools: Sequence[Any], index: int, text: str, ends: tuple[int, int] | None
    ) -> tuple[str, str]:
        """The text of the prompt that calls for a turn, and of the conversation up to the turn's end."""
        if ends is not None:
            return text[: ends[0]], text[: ends[1]]
        last = index == len(turns) - 1
        whole = text if last else self._template.render(turns[: index + 1], tools, prompt=False)
        return self._template.render(turns[:index], tools, prompt=True), whole

    def _own(self, added: str) -> str:
        """What a turn adds up to its stop token; empty if it has none.

        The stop token is a control token behind which stand only white space and such tokens: the first that ends
        generation at inference, or else the last.
        """
        trailer = self._ending.trailer
        end = len(added) - len(trailer) if trailer and added.endswith(trailer) else len(added)
        stop = 0
        for start, close, number in reversed(self._speller.controls(added[:end])):
            if added[close:end].strip():
                break
            if not stop or number in self._known:
                stop = close
            end = start
        return added[:stop]

    def _marker(self, turn: Any, behind: str, last: bool) -> str:
        """The next turn's role marker, if inference stops at it; what a turn without a stop token of its own needs."""
        if last and not turn.get("tool_calls"):
            behind = self._ending.marker
        first = next(iter(self._speller.controls(behind)), None)
        if first is None or first[0] > 0 or first[2] not in self._known:
            raise RowFault(
                "template_no_end",
                f"{self._template.name} ends the assistant's turn without a stop token, so nothing teaches it to stop",
                "let the template write eos_token or another control token behind the answer",
            )
        return behind[: first[1]]

    def _elsewhere(
        self, turns: Sequence[Any], tools: Sequence[Any], index: int, shown: tuple[str, str, str, str]
    ) -> int | None:
        """Where the own part of a turn stands in the whole text, unchanged, behind the same prompt; None if it was.

        A private character in the turn tells the place, so nothing is searched for that a row could have written.
        """
        head, upto, own, text = shown
        marked = _marked(turns[index])
        if marked is None or not own:
            return None
        alone = self._template.render([*turns[:index], marked], tools, prompt=False)
        whole = self._template.render([*turns[:index], marked, *turns[index + 1 :]], tools, prompt=False)
        for with_mark, without in ((alone, upto), (whole, text)):
            if with_mark.count(OPENS) != 1 or with_mark.replace(OPENS, "") != without:
                return None
        start = whole.index(OPENS) - alone.index(OPENS) + len(head)
        before = self._template.render(turns[:index], tools, prompt=False)
        called = head[_shared(before, head) :]
        fits = start >= 0 and text.startswith(own, start) and text[:start].endswith(called)
        return start if fits else None

    def _require_same(self, index: int, text: str, span: tuple[int, int], marks: Marks) -> None:
        """RowFault unless the marks in and around a turn enclose exactly its own part."""
        start, end = span
        touching = [(opens, closes) for opens, closes in marks if opens < end and closes > start]
        same, reached = bool(touching) and touching[0][0] == start, start
        for opens, closes in touching:
            same &= opens <= reached
            reached = max(reached, closes)
        if not same or reached < end or self._letters(text[end:reached]):
            raise self._disagreement(f"turn {index + 1}", touching, f"[{start}, {end})")

    def _disagreement(self, place: str, marks: Marks, found: str) -> RowFault:
        told = " and ".join(f"[{start}, {end})" for start, end in marks) or "nothing"
        return RowFault(
            "masks_disagree",
            f"two ways to find what is taught disagree at {place}: the generation tags of {self._template.name} mark "
            f"{told} of the text, incremental rendering finds {found}",
            "let the tags enclose what the assistant writes, its stop token included, or remove them",
        )

    def _letters(self, text: str) -> str:
        """The text without control tokens and white space around them."""
        at, kept = 0, ""
        for start, end, _ in self._speller.controls(text):
            kept, at = kept + text[at:start], end
        return (kept + text[at:]).strip()

    def _unlike(self, index: int, head: str, upto: str) -> RowFault:
        same = _shared(head, upto)
        return RowFault(
            "template_unstable",
            f"{self._template.name} calls for turn {index + 1} with a prompt that the turn does not begin with: "
            f"{self._speller.show(head[same : same + 40])!r}",
            "write the turn as the prompt begins it (its thoughts first, if the prompt opens them), or use a "
            "template whose generation prompt is the beginning of its turns",
        )

    def _learn(self) -> Ending:
        """How the template ends a question's answer, alone and when another question follows."""
        alone = self._template.render(_PLAIN, prompt=False)
        plain = alone.rpartition(_ANSWER)[2]
        try:
            more = self._template.render([*_PLAIN, _PLAIN[0]], prompt=False)
        except RowFault:  # a template for one question only: no turn of it has another behind it
            return Ending()
        behind = more.rpartition(_ANSWER)[2]
        common = _shared(plain, behind)
        stops = [stop for _, stop, _ in self._speller.controls(behind) if stop <= common]
        if stops:
            closes = plain[stops[-1] :].strip()
            return Ending(trailer="" if behind.startswith(plain) or self._letters(closes) else closes)
        return Ending(marker=behind[len(plain) :] if behind.startswith(plain) else "")


def closing(template: Template, tokenizer: Tokenizer) -> set[int]:
    """Added tokens that the template itself writes behind an answer, special or not."""
    if template.source is None:
        return set()
    plain = template.render(_PLAIN, prompt=False).rpartition(_ANSWER)[2]
    return {number for number, token in tokenizer.added_tokens_decoder.items() if str(token.content) in plain}


def _marked(turn: Any) -> Any:
    """The turn with a private character in its content, or in the name of a tool it calls; None if it has neither."""
    if turn["content"].strip():
        return {**turn, "content": _inserted(turn["content"])}
    if not turn.get("tool_calls"):
        return None
    first, *others = turn["tool_calls"]
    function = {**first["function"], "name": _inserted(first["function"]["name"])}
    return {**turn, "tool_calls": [{**first, "function": function}, *others]}


def _inserted(text: str) -> str:
    """The text with a private character before the last that is not white space, so that trimming stays as it is."""
    at = len(text.rstrip()) - 1
    return text[:at] + OPENS + text[at:]


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)
