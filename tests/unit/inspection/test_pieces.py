"""Text per token: byte-level and sentencepiece spellings, characters over several tokens, control tokens, borders."""

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from fulltune.inspection.pieces import Piece, byte_reader, pieces, stretches
from tests import tiny

SPECIAL = range(len(tiny.SPECIAL))
BYTE_LEVEL = tiny.tokenizer(adds_bos=False)


def sentencepiece() -> Any:
    """As Llama 2: `▁` for spaces, one token a byte for what the vocabulary lacks, one leading space stripped."""
    words = [*tiny.SPECIAL, "<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"abcdefgh", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    vocab = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(tiny.SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


SENTENCEPIECE = sentencepiece()


def decode(tokenizer: Any) -> Any:
    return partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def cut(tokenizer: Any, ids: list[int], taught: set[int] = frozenset()) -> tuple[Piece, ...]:  # type: ignore[assignment]
    return pieces(decode(tokenizer), ids, [n in taught for n in range(len(ids))], SPECIAL)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab c\n\tßé日本🎉🇯�", min_size=1, max_size=30))
def test_pieces_make_up_the_text_and_break_no_character(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    made = cut(tokenizer, ids)
    assert "".join(piece.text for piece in made) == decode(tokenizer)(ids)
    assert [piece.start for piece in made] == [0, *(piece.stop for piece in made[:-1])][: len(made)]
    if "�" not in text:
        assert not any("�" in piece.text for piece in made)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_a_character_over_several_tokens_is_one_piece(tokenizer: Any) -> None:
    made = cut(tokenizer, encode(tokenizer, "a日🎉b"))
    shown = {piece.text: piece.stop - piece.start for piece in made}
    assert shown["日"] == 3
    assert shown["🎉"] == 4


def test_a_space_is_kept_at_the_border_of_a_stretch() -> None:
    """Decoded alone, `▁a` loses its space, and words of prompt and answer would run together."""
    ids = encode(SENTENCEPIECE, "ab a ab a")
    taught = {number for number, piece in enumerate(SENTENCEPIECE.convert_ids_to_tokens(ids)) if piece == "▁a"}
    taught = {max(taught)}
    made = cut(SENTENCEPIECE, ids, taught)
    assert stretches(made) == (" a",)
    assert "".join(piece.text for piece in made) == decode(SENTENCEPIECE)(ids)


def test_a_control_token_is_told_from_text_that_spells_it() -> None:
    end = tiny.SPECIAL.index("<|end|>")
    spelled = BYTE_LEVEL("<|end|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    made = cut(BYTE_LEVEL, [*spelled, end, end])
    assert [piece.text for piece in made if piece.special] == ["<|end|>", "<|end|>"]
    assert "".join(piece.text for piece in made if not piece.special) == "<|end|>"


def test_a_row_cut_within_a_character_shows_where() -> None:
    ids = encode(BYTE_LEVEL, "a日")[:-1]
    made = cut(BYTE_LEVEL, ids)
    assert made[0].text == "a"
    assert made[-1].text.strip("�") == ""


def test_half_a_character_before_a_border_does_not_swallow_what_follows() -> None:
    ids = [*encode(BYTE_LEVEL, "日")[:2], *encode(BYTE_LEVEL, "ab")]
    made = cut(BYTE_LEVEL, ids, {2, 3, 4})
    assert stretches(made) == ("ab",)


def test_stretches_are_apart_where_something_is_only_read() -> None:
    ids = encode(BYTE_LEVEL, "7 7 7 7 7")
    assert len(stretches(cut(BYTE_LEVEL, ids, {0, 2, 3}))) == 2
    assert stretches(cut(BYTE_LEVEL, ids)) == ()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab cß日🎉", min_size=1, max_size=20))
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(tokenizer: Any, text: str) -> None:
    read = byte_reader(tokenizer.backend_tokenizer.decoder)
    raw = b"".join(read(piece) for piece in tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))
    assert raw.decode() in (text, f" {text}"), "sentencepiece puts a space before every text"
