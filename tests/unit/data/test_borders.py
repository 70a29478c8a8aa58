"""The short way to a turn's tokens gives what encoding every prompt whole gives, whatever the tokenizer does."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from fulltune.data.borders import Borders
from fulltune.data.example import Chat, Message, RowFault
from fulltune.data.render import Encoded, Renderer
from fulltune.data.spelling import Speller
from fulltune.data.template import Template
from tests import tiny
from tests.shared.test_templates import TOKENIZERS, conversations, source, tokenizer

SPACED = tiny.TEMPLATE.replace("'|>' + m['content'] + '<|end|>'", "'|>\n' + m['content'] + '<|end|>\n'").replace(
    "'<|assistant|>'", "'<|assistant|>\n'"
)
BARE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def said(outcome: Any) -> Any:
    """An outcome as values that can be compared."""
    if isinstance(outcome, Encoded):
        return outcome.ids.tolist(), outcome.labels.tolist(), outcome.weights.tolist(), outcome.notes
    return (outcome.code, outcome.what) if isinstance(outcome, RowFault) else outcome


@contextmanager
def counted(renderer: Renderer) -> Iterator[list[bool]]:
    """For each conversation, whether the short way told where its turns lie."""
    short: list[bool] = []
    find = renderer._borders.places

    def places(*asked: Any) -> Any:
        found = find(*asked)
        short.append(found is not None)
        return found

    renderer._borders.places = places  # type: ignore[method-assign, assignment]
    yield short


def both_ways(tokens: Any, template: str, chats: list[Chat], supervise: Any = "assistant") -> int:
    """Renders by both ways, which must agree; how many conversations the short way could tell."""

    def made() -> Renderer:
        template_ = Template(tokens, template, "t")
        return Renderer(tokens, template_, supervise=supervise, max_length=9999, over_length="error")

    short, whole = made(), made()
    assert short._speller.direct
    whole._borders._firm = set()
    whole._speller.direct = False
    with counted(short) as told, counted(whole) as untold:
        assert [said(outcome) for outcome in short.render(chats)] == [said(o) for o in whole.render(chats)]
    assert short.stop_ids == whole.stop_ids
    assert not untold
    return sum(told)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_real_template_with_every_real_tokenizer(shared: Path, name: str) -> None:
    chats, told, files = list(conversations(shared).values()), 0, 0
    for file in json.loads((shared / "templates" / "_golden.json").read_text()):
        template = source(shared, file)
        told += both_ways(tokenizer(shared, name, template), template, chats)
        files += 1
    assert files == 36
    assert told > 100, "the short way is hardly ever taken"


def byte_level() -> Any:
    return tiny.tokenizer()


def lowering() -> Any:
    """A normaliser that changes texts, and control tokens that are looked for behind it."""
    tokens = tiny.tokenizer()
    tokens.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokens.add_tokens([AddedToken("<|user|>", normalized=True, special=True)])
    return tokens


def stripping() -> Any:
    """Control tokens that swallow the white space beside them."""
    tokens = tiny.tokenizer()
    for text, sides in (("<|assistant|>", {"rstrip": True}), ("<|end|>", {"lstrip": True, "rstrip": True})):
        tokens.add_tokens([AddedToken(text, special=True, normalized=False, **sides)])
    return tokens


def only_words() -> Any:
    """Control tokens that are none inside of words, and an added one that swallows the beginning of another."""
    tokens = tiny.tokenizer()
    tokens.add_tokens([AddedToken("<|assistant|>", special=True, normalized=False, single_word=True)])
    tokens.add_tokens([AddedToken("a<|end|>", special=False, normalized=False), AddedToken("<|assistant|>\nthe")])
    return tokens


def metaspace(scheme: str) -> Callable[[], Any]:
    """As SentencePiece: a sign for spaces, also before the first word or before each."""

    def made() -> Any:
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        rng = random.Random(0)
        texts = [tiny.text(rng, 20) + " user: assistant: \n" for _ in range(50)]
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=[*tiny.SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
        )
        raw.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    return made


def prefixed() -> Any:
    """As Llama's: every piece between control tokens begins with a space of its own."""
    tokens = tiny.tokenizer()
    tokens.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.NFC()]
    )
    return tokens


ODD = {
    "byte level": byte_level,
    "lowering": lowering,
    "stripping": stripping,
    "only words": only_words,
    "first": metaspace("first"),
    "always": metaspace("always"),
    "never": metaspace("never"),
    "prefixed": prefixed,
}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*tiny.SPECIAL, "\n", " ", "\r\n", "the cat", "a", "A", "", "\u0301", "\u200b", "İ", "🙂"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", ODD)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), everything=st.booleans())
def test_any_text_with_odd_tokenizers(name: str, turns: list[tuple[str, str]], everything: bool) -> None:
    tokens = ODD[name]()
    chat = Chat(tuple(m for q, a in turns for m in (Message("user", q), Message("assistant", a))))
    for template in (tiny.TEMPLATE, SPACED, BARE):
        both_ways(tokens, template, [chat], "all" if everything else "assistant")


@pytest.mark.parametrize("name", ODD)
def test_the_short_way_is_taken_where_nothing_forbids_it(name: str) -> None:
    chat = Chat(
        (Message("user", "the cat"), Message("assistant", "yes"), Message("user", "a"), Message("assistant", "b"))
    )
    told = {
        kind: both_ways(ODD[name](), template, [chat]) for kind, template in (("plain", tiny.TEMPLATE), ("n", SPACED))
    }
    assert told["plain"] == (name != "only words")
    assert told["n"] == (name not in ("only words", "stripping"))


def test_a_prompt_that_the_answer_merges_with_is_told_by_the_short_way_too() -> None:
    tokens = tiny.tokenizer()
    speller = Speller(tokens)
    text = "<s>user: a</s>assistant: the cat</s>"
    start = text.index("the cat")
    borders = Borders(tokens, speller).of(text, [(start, len(text))])
    assert borders is not None
    assert borders[0].call == "</s>assistant: "
    whole, call = speller.encode_all([text, borders[0].call])
    assert Borders.places(borders, whole, {borders[0].call: call}) == [(-1, len(whole.ids))]


def test_what_a_tokenizer_was_set_to_before_does_not_matter() -> None:
    """Truncation, padding, control tokens as letters: settings that other calls leave behind in the library."""
    tokens = tiny.tokenizer()
    speller = Speller(tokens)
    text = "<s><|user|>the cat sat on the mat<|end|>"
    wanted = tokens(text, add_special_tokens=False)["input_ids"]
    tokens.backend_tokenizer.enable_truncation(max_length=3)
    assert speller.encode_all([text])[0].ids == wanted
    tokens.backend_tokenizer.enable_padding(length=50)
    assert speller.encode_all([text])[0].ids == wanted
    tokens(text, split_special_tokens=True)
    assert speller.encode_all([text, "a"])[0].ids == wanted


def test_a_tokenizer_with_code_of_its_own_is_asked_by_its_own_code() -> None:
    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _encode_plus(self, text: Any, *asked: Any, **options: Any) -> Any:
            return super()._encode_plus([one.replace("the", "a") for one in text], *asked, **options)

    plain = tiny.tokenizer()
    tokens = Own(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    speller = Speller(tokens)
    assert not speller.direct
    assert speller.encode_all(["the cat"])[0].ids == speller.encode_all(["a cat"])[0].ids
