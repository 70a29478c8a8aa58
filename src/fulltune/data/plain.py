"""Content without a chat template -> token ids, and which of them are taught."""

import bisect

from fulltune.data.example import Content, RowFault, Text, Tokens
from fulltune.data.spelling import Speller
from fulltune.data.template import Tokenizer


def encode(
    content: Content, tokenizer: Tokenizer, speller: Speller, *, keep: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is something to be produced. `keep`: a document's control tokens are some."""
    if isinstance(content, Tokens):
        return _given(content, tokenizer)
    assert isinstance(content, Text), "the intake keeps rows of other tasks"
    return (
        _document(content, tokenizer, keep) if content.taught is None else _segments(content, content.taught, speller)
    )


def _document(content: Text, tokenizer: Tokenizer, keep: bool) -> tuple[list[int], list[bool]]:
    """What the tokenizer puts before every text (BOS), the text, one end token; all of it taught."""
    made = tokenizer(content.text, split_special_tokens=not keep, verbose=False)
    ids = list(made["input_ids"])
    if keep and tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        what = "the text begins with the token that the tokenizer puts before every text"
        raise RowFault("double_bos", what, "remove it there")
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    return ids, [True] * len(ids)


def _segments(content: Text, spans: tuple[tuple[int, int], ...], speller: Speller) -> tuple[list[int], list[bool]]:
    """The text as it stands, control tokens parsed; no token crosses the border of a taught span, and none is added."""
    borders = sorted({place for span in spans for place in span if 0 < place < len(content.text)})
    made = speller.encode_split(content.text, borders)
    starts = [start for start, _ in spans]

    def taught(at: int) -> bool:
        index = bisect.bisect_right(starts, at) - 1
        return index >= 0 and at < spans[index][1]

    return made.ids, [taught(start) for start, _ in made.offsets]


def _given(content: Tokens, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    size = len(tokenizer)
    if beyond := [token for token in content.ids if token >= size]:
        what = f"the id {beyond[0]} is beyond the {size:,} tokens of this tokenizer"
        raise RowFault("type", what, "prepare the row with the model's own tokenizer")
    return list(content.ids), [label != -100 for label in content.labels]
