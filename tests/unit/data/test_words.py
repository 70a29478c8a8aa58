"""Looking words up gives what the library gives, for every tokenizer that is read this way, and leaves the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fulltune.data.spelling import Speller
from fulltune.data.words import _SIGNS, Words, words_of

LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "l l", "' s", "1 2", "Ċ Ċ", "e r", "Ġ Ġ", "o n", "Ġ 1", "' t", "< |"]
ADDED = ["<|im_start|>", "<|im_end|>", "<think>"]


def backend(split: str | None = None, **changes: Any) -> Tokenizer:
    names = [*ALPHABET, *("".join(pair.split()) for pair in MERGES)]
    pairs = [tuple(pair.split()) for pair in MERGES]
    made = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=pairs))
    if split is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        steps = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    for name, value in changes.items():
        setattr(made, name, value)
    made.add_special_tokens(ADDED)
    return made


def after(first: Any) -> Tokenizer:
    """A tokenizer that cuts out numbers before GPT-2's expression cuts the rest into words."""
    return backend(pre_tokenizer=pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(False)]))


KNOWN = {
    "digits": after(pre_tokenizers.Digits(individual_digits=True)),
    "numbers": after(pre_tokenizers.Digits(individual_digits=False)),
    "pairs": after(pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated")),
    "triples": after(pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")),
    "gpt2": backend(),
    "llama3": backend(LLAMA3),
    "qwen": backend(QWEN, normalizer=normalizers.NFC()),
    "gpt4o": backend(GPT4O),
}
PIECES = st.one_of(
    st.sampled_from([*ADDED, "\n", "\n\n", "  ", "'s", "'LL", "12345", "the", "\t", "\r\n", "<|im_", "<"])
)
TEXTS = st.lists(st.one_of(PIECES, st.text("".join(map(chr, range(32, 127))) + _SIGNS, max_size=9)), max_size=12).map(
    "".join
)


def looked_up(made: Tokenizer) -> Words:
    found = words_of(made)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(KNOWN))
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_the_tokens_are_the_librarys(name: str, text: str) -> None:
    words, made = looked_up(KNOWN[name]), KNOWN[name].encode(text, add_special_tokens=False)
    found = words.encode(text)
    assert found is not None
    assert found.numbers.tolist() == made.ids
    assert found.offsets == made.offsets
    for index, (start, end) in enumerate(made.offsets):
        if made.tokens[index] in ADDED:
            assert found.exactly(start, end, made.ids[index]) == index
            assert found.exactly(start, end + 1, made.ids[index]) is None
            assert found.exactly(start, end, made.ids[index] + 1) is None


@given(text=st.text(min_size=1).filter(lambda text: not text.isascii() or any(char < " " for char in text)))
def test_other_characters_are_left_to_the_library(text: str) -> None:
    found = looked_up(KNOWN["gpt2"]).encode(text)
    assert found is None or found.numbers.tolist() == KNOWN["gpt2"].encode(text, add_special_tokens=False).ids
    if not text.translate(dict.fromkeys(map(ord, _SIGNS))).isascii():
        assert found is None


def stripping() -> Tokenizer:
    from tokenizers import AddedToken

    made = backend()
    made.add_special_tokens([AddedToken("<left>", lstrip=True)])
    return made


def lacking() -> Tokenizer:
    """A vocabulary without the letter z."""
    parts = json.loads(backend().to_str())
    del parts["model"]["vocab"]["z"]
    return Tokenizer.from_str(json.dumps(parts))


OTHERS = {
    "a prefix space": backend(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "no words": backend(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "white space": backend(pre_tokenizer=pre_tokenizers.Whitespace()),
    "lower case": backend(normalizer=normalizers.Lowercase()),
    "an unknown property": backend(r"\p{Han}+|\s+|\S+"),
    "a group": backend(r"(a|b)+|\s+|[^ab\s]+"),
    "a token that takes the space before it": stripping(),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_is_not_known_is_left_to_the_library(name: str) -> None:
    assert words_of(OTHERS[name]) is None


def test_a_word_that_cannot_be_spelled_is_left_to_the_library() -> None:
    words = looked_up(lacking())
    assert words.encode("the zoo") is None
    assert words.encode("the cat") is not None


@pytest.mark.parametrize("name", ["gpt2", "guppylm-chatml", "torchtitan-test-2k", "llama2-32k"])
def test_real_tokenizers_on_real_texts(shared: Path, name: str) -> None:
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(shared / "tokenizers" / name / "tokenizer.json"))
    texts = [
        line
        for path in sorted((shared / "data").glob("*/*.jsonl"))
        for line in path.read_text().splitlines()[:60]
        if len(line) < 20_000
    ]
    speller = Speller(tokens)
    wanted = tokens.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    for made, own in zip(wanted, speller.encode_all(texts), strict=True):
        assert own.ids == made.ids
