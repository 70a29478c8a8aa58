"""A cheap guess at the language of a text: its script, and in Latin and Cyrillic letters its small words.

A heuristic to see the mix of a data set, not to sort rows by: short texts, code and languages beyond the list come out
as the name of their script, and mixed texts as what most of their letters belong to.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping

_LOOKED_AT = 2000
"""Characters of a text that are looked at."""
_LEAST = 2
"""Small words of a language that a text must have."""
_SCRIPTS: Mapping[str, str] = {
    "latin": "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ",
    "cyrillic": "Ѐ-ԯ",
    "greek": "Ͱ-Ͽἀ-῾",
    "hebrew": "֐-׿",
    "arabic": "؀-ۿݐ-ݿࢠ-ࣿ",
    "devanagari": "ऀ-ॿ",
    "bengali": "ঀ-৿",
    "tamil": "஀-௿",
    "thai": "฀-๿",
    "kana": "぀-ヿ",
    "hangul": "가-힣ᄀ-ᇿ",
    "han": "㐀-䶿一-鿿𠀀-𪛟",
}
_PATTERNS = {script: re.compile(f"[{letters}]") for script, letters in _SCRIPTS.items()}
_ASCII = bytes(range(128))
_NO_LETTERS = bytes(code for code in range(256) if code > 127 or not chr(code).isalpha())
_ASCII_WORDS = bytes(0x20 if code in _NO_LETTERS else code for code in range(256)).lower()
"""Lower-case letters, and a space for all else."""
_ONE_LANGUAGE: Mapping[str, str] = {
    "greek": "el",
    "hebrew": "he",
    "thai": "th",
    "hangul": "ko",
    "kana": "ja",
    "han": "zh",
}
_SMALL: Mapping[str, Mapping[str, frozenset[str]]] = {
    "latin": {
        "en": frozenset("the of and to in is you that it for was on are with this have what how not".split()),
        "de": frozenset("der die und das ist ein nicht zu den mit von sich auf für eine auch wie dem ich sind".split()),
        "fr": frozenset("le les et des est une dans pour que qui pas sur plus par avec ce il vous je du".split()),
        "es": frozenset("el los y las es una por para con del se lo como más pero sus está qué son al".split()),
        "it": frozenset("il di che è per un non sono gli della con del si più anche nel alla dei questo ho".split()),
        "pt": frozenset("o e os um uma não para com do da em é mais como mas foi são pelo dos você".split()),
        "nl": frozenset("de het een en van is dat niet op te zijn voor met die aan ook er maar wat naar".split()),
        "pl": frozenset("w i na się nie z jest do to że jak od za po przez czy są dla ale tym".split()),
        "sv": frozenset("och att det är en som på för av med den inte till har jag om ett var kan ska".split()),
        "tr": frozenset("bir ve bu için ne çok da de ile daha olarak gibi var kadar ama ben mi nasıl en değil".split()),
        "id": frozenset(
            "yang dan di untuk dengan dari ini tidak adalah itu pada dalam akan atau ke saya apa bisa".split()
        ),
        "vi": frozenset("và của là có không được cho một các với người trong đã những này tôi để khi bạn về".split()),
    },
    "cyrillic": {
        "ru": frozenset("и в не на что с как это по из для то он но я так же от есть вы".split()),
        "uk": frozenset("і в не на що з як це та до для є він але я від за про у ви".split()),
        "bg": frozenset("и на в да се не за от е с са по че как това до ще като аз със".split()),
    },
}
_LANGUAGES = {
    script: {
        word: [name for name, small in names.items() if word in small] for word in frozenset().union(*names.values())
    }
    for script, names in _SMALL.items()
}
"""Script -> small word -> its languages: the words of a text are looked up once, and not once for each language."""
_WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str:
    """A code of ISO 639-1, the name of a script where that is all that can be said, or `none` without letters."""
    text = text[:_LOOKED_AT]
    words = _words(text)
    script = ("latin" if words else None) if text.isascii() else _script(text)
    if script is None:
        return "none"
    if script in _ONE_LANGUAGE:
        return _ONE_LANGUAGE[script]
    known = _LANGUAGES.get(script, {})
    scores: dict[str, int] = {}
    for word, count in Counter(filter(known.__contains__, words)).items():
        for name in known[word]:
            scores[name] = scores.get(name, 0) + count
    best = max(scores, key=lambda name: (scores[name], name), default=None)
    return best if best is not None and scores[best] >= _LEAST else script


def _words(text: str) -> list[str]:
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return _WORD.findall(text.casefold())


def _script(text: str) -> str | None:
    """The script of most letters; a little kana is enough for Japanese, which is mostly written in Han."""
    data = text.encode("utf-8", "surrogatepass")
    counts = Counter({"latin": len(data.translate(None, _NO_LETTERS))})
    for char, count in Counter(data.translate(None, _ASCII).decode("utf-8", "surrogatepass")).items():
        if (script := _script_of(char)) is not None:
            counts[script] += count
    # One Han character or syllable says as much as about three letters.
    weighed = {script: counts[script] * (3 if script in ("han", "hangul", "kana") else 1) for script in _SCRIPTS}
    best = max(weighed, key=lambda script: weighed[script])
    if best == "han" and counts["kana"] * 10 > counts["han"]:
        return "kana"
    return best if weighed[best] else None


@functools.lru_cache(maxsize=1 << 15)
def _script_of(char: str) -> str | None:
    return next((script for script, pattern in _PATTERNS.items() if pattern.match(char)), None)
