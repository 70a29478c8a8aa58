"""The token at the beginning of a sequence (BOS): as often as the template writes it, which is once or never."""

import numpy as np
from numpy.typing import NDArray

from fulltune.data.example import RowFault
from fulltune.data.template import Tokenizer

NONE = "no_bos"
"""Note: the tokenizer begins plain texts with BOS, and the template writes none; inference will see none either."""


class Beginning:
    """What a tokenizer has to say about BOS, and whether a text keeps to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._id = tokenizer.bos_token_id
        self._text = "" if self._id is None else str(tokenizer.special_tokens_map["bos_token"])
        plain = [] if self._id is None else list(tokenizer("a", verbose=False)["input_ids"])
        self._adds = plain[:1] == [self._id]

    def require_one(self, text: str) -> None:
        """RowFault if a rendered text, in which nothing of the row reads as BOS, begins with two."""
        if self._text and text.startswith(self._text) and text[len(self._text) :].lstrip().startswith(self._text):
            what = f"the chat template begins the conversation with {self._text} twice"
            raise RowFault("double_bos", what, "let the template write bos_token once")

    def require_as_written(self, text: str, ids: NDArray[np.int32]) -> None:
        """RowFault unless there are as many BOS among the ids as in the text."""
        if self._id is None:
            return
        written, made = text.count(self._text), int(np.count_nonzero(ids == self._id))
        if written != made:
            what = f"the chat template writes {self._text} {written} times, and the tokenizer makes {made} of it"
            raise RowFault("bos", what, "use the tokenizer that the chat template was written for")

    def notes(self, text: str) -> frozenset[str]:
        """NONE, where the tokenizer begins plain texts with BOS and this text does not begin with it."""
        return frozenset({NONE} if self._adds and not text.startswith(self._text) else ())
