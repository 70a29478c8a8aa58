"""What a row says can become no control token, wherever in the row it stands."""

import pytest

from fulltune.data.example import RowFault
from fulltune.data.spelling import Speller
from tests import tiny


def test_keys_are_hidden_and_named_like_values() -> None:
    speller = Speller(tiny.tokenizer())
    value = {"arguments": {"<|end|>": ["</s>"]}}
    assert speller.spelled(value) == {"<|end|>", "</s>"}
    hidden = speller.hide(value)
    assert "<|end|>" not in str(hidden)
    assert speller.show(next(iter(hidden["arguments"]))) == "<|end|>"


def test_icons_of_private_use_are_texts_and_stand_ins_are_refused() -> None:
    speller = Speller(tiny.tokenizer())
    icons = "icon \U000f0001 and \ue0b0"
    assert speller.show(speller.hide(icons)) == icons
    taken = speller.hide("</s>")
    with pytest.raises(RowFault) as caught:
        speller.hide({"content": f"text {taken}"})
    assert caught.value.code == "private_character"
