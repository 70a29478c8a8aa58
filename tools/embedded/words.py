"""Names, things and numbers. Every pool is cut in two by hash: what training may see, and what it never sees."""

import hashlib
import random
from collections.abc import Callable

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr r s sh st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ia io oa ou".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "nd", "ck", "x"]

_THINGS = (
    "lamp kettle chair jacket teapot backpack mirror blanket speaker wallet clock desk bottle keyboard "
    "umbrella scarf vase helmet camera drill basket pillow stove razor tripod ladder candle guitar "
    "toaster curtain bracelet notebook hammock printer sandal thermos mattress compass scooter blender"
).split()

COLOURS = "red blue green black white yellow grey brown pink purple orange teal".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def unseen(word: str) -> bool:
    """True for the fifth of all names, things and numbers that training must never contain."""
    return hashlib.sha256(word.encode()).digest()[0] < 51


class Words:
    """Draws words from one side of the cut: `held=False` for training, `held=True` for what is held out."""

    def __init__(self, rng: random.Random, *, held: bool) -> None:
        self.rng, self._held = rng, held

    def _draw(self, make: Callable[[], str]) -> str:
        while True:
            word = make()
            if unseen(word) == self._held:
                return word

    def _syllables(self, least: int, most: int) -> str:
        rng = self.rng
        count = rng.randint(least, most)
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))

    def first_name(self) -> str:
        """A given name such as `Brelia`."""
        return self._draw(lambda: self._syllables(1, 2).capitalize())

    def name(self) -> str:
        """A given name and a family name."""
        return f"{self.first_name()} {self._draw(lambda: self._syllables(1, 2).capitalize())}"

    def place(self) -> str:
        """A street or a town."""
        return self._draw(lambda: self._syllables(2, 2).capitalize())

    def product(self) -> str:
        """Something a shop sells, by brand and model, such as `Tolam 47`."""
        return self._draw(lambda: f"{self._syllables(2, 2).capitalize()} {self.rng.randrange(10, 100)}")

    def thing(self) -> str:
        """A common thing; there are few, and both sides of the cut know them."""
        return self.rng.choice(_THINGS)

    def number(self, digits: int) -> str:
        """A number of so many digits that does not begin with 0."""
        return self._draw(lambda: str(self.rng.randrange(10 ** (digits - 1), 10**digits)))

    def code(self) -> str:
        """A code such as `QX-417`."""
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        rng = self.rng
        return self._draw(lambda: f"{rng.choice(letters)}{rng.choice(letters)}-{rng.randrange(100, 1000)}")
