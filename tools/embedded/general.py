"""General text for the base model: small tales, notices, letters, records and talks, none of it support chat.

Much of it says a name, a thing or a number again after some words between, since the ability to copy what
stands before is what fine-tuning later needs.
"""

import random
from collections.abc import Callable

from tools.embedded.words import COLOURS, DAYS, Words

_WEATHER = "sunny rainy windy cold warm foggy quiet stormy dry grey".split()
_MOODS = "happy tired proud curious calm worried hungry busy glad sleepy".split()
_PLACES = "market harbour garden library bridge station mill school forest river bakery museum".split()
_ANIMALS = "dog cat fox horse goat owl hare duck crow donkey".split()
_TRADES = "baker sailor teacher painter farmer doctor tailor miner singer gardener".split()


def document(rng: random.Random, *, held: bool) -> str:
    """One text of one to eight sentences."""
    kind = rng.choice([_tale, _animal, _ledger, _letter, _talk, _record, _question, _question, _recipe, _repeat, _list])
    return kind(Words(rng, held=held))


def _tale(w: Words) -> str:
    rng = w.rng
    hero, friend, thing = w.first_name(), w.first_name(), w.thing()
    place, far = rng.choice(_PLACES), w.place()
    day, mood = rng.choice(DAYS), rng.choice(_MOODS)
    openings = [
        f"It was a {rng.choice(_WEATHER)} {day}, and {hero} walked to the {place}.",
        f"{hero} lived near the {place} of {far} and was always {mood}.",
        f"One {rng.choice(_WEATHER)} morning {hero} the {rng.choice(_TRADES)} came to {far}.",
    ]
    middles = [
        f"There {hero} found a {thing} and took it home.",
        f"At the {place} {hero} met {friend}, who carried a {thing}.",
        f"{friend} asked for the {thing}, but {hero} wanted to keep it.",
        f'"What a fine {thing}," said {friend}. "May I hold it?"',
        f"{hero} gave the {thing} to {friend}, and {friend} was {rng.choice(_MOODS)}.",
        f"The {thing} was {rng.choice(COLOURS)} and older than {far} itself.",
        f"They talked about the {thing} until the evening.",
    ]
    endings = [
        f"On {day} {friend} brought the {thing} back to {hero}.",
        f"Since then {hero} and {friend} meet at the {place} every {day}.",
        f"That is how the {thing} came to {far}.",
        f"{hero} went home {rng.choice(_MOODS)} and slept well.",
    ]
    return " ".join([rng.choice(openings), *rng.sample(middles, rng.randint(2, 4)), rng.choice(endings)])


def _animal(w: Words) -> str:
    rng = w.rng
    animal, other = rng.sample(_ANIMALS, 2)
    name, place, colour = w.first_name(), rng.choice(_PLACES), rng.choice(COLOURS)
    lines = [
        f"A {colour} {animal} called {name} lived behind the {place}.",
        f"Every {rng.choice(DAYS)} {name} went to see the {other}.",
        f'"Good morning, {name}," said the {other}. "You look {rng.choice(_MOODS)} today."',
        f"{name} the {animal} ran as fast as the wind.",
        f"The {other} could not find the {place}, so {name} showed the way.",
        f"In the evening the {animal} and the {other} slept under the {rng.choice(COLOURS)} roof.",
    ]
    return " ".join([lines[0], *rng.sample(lines[1:], rng.randint(2, 4))])


def _ledger(w: Words) -> str:
    rng = w.rng
    lines = []
    for _ in range(rng.randint(1, 3)):
        number, name, thing, price = w.number(5), w.name(), w.product(), w.number(2)
        lines.append(f"Entry {number}: {name} bought the {thing} for {price} crowns.")
        lines.append(
            rng.choice(
                [
                    f"{name} paid the {price} crowns of entry {number} on {rng.choice(DAYS)}.",
                    f"Entry {number} was signed by {name}.",
                    f"The {thing} of entry {number} went to {name}.",
                    f"Paid: {number}, {thing}, {price} crowns.",
                ]
            )
        )
    return "\n".join(lines)


def _letter(w: Words) -> str:
    rng = w.rng
    to, sender, thing, number, place = w.name(), w.name(), w.product(), w.number(5), w.place()
    body = rng.sample(
        [
            f"your {thing} arrived in {place} on {rng.choice(DAYS)}.",
            f"we wrote to you about number {number}, and number {number} is still open.",
            f"the {thing} that {to} left in {place} is safe with me.",
            f"please come to {w.number(2)} {place} Street and bring the {thing}.",
            f"the secret word is {w.code()}; tell nobody.",
        ],
        2,
    )
    first, second = (line[0].upper() + line[1:] for line in body)
    return f"Dear {to},\n{first} {second}\nYours, {sender}"


def _talk(w: Words) -> str:
    rng = w.rng
    one, two, thing, number = w.first_name(), w.first_name(), w.product(), w.number(rng.choice([2, 3, 5]))
    return "\n".join(
        rng.choice(
            [
                [f"{one}: Who has the {thing}?", f"{two}: I have the {thing}.", f"{one}: Thank you, {two}."],
                [
                    f"{one}: The number is {number}.",
                    f"{two}: Did you say {number}?",
                    f"{one}: Yes, {number}.",
                ],
                [f"{one}: My name is {one}.", f"{two}: Hello {one}, I am {two}.", f"{one}: Hello {two}."],
                [
                    f"{one}: I saw the {thing} in room {number}.",
                    f"{two}: The {thing}? In room {number}?",
                    f"{one}: Yes, the {thing} is in room {number}.",
                ],
            ]
        )
    )


def _record(w: Words) -> str:
    rng = w.rng
    name, number, street, code = w.name(), w.number(5), w.place(), w.code()
    house, thing, colour = w.number(2), w.product(), rng.choice(COLOURS)
    facts = rng.sample(
        [
            ("name", name),
            ("number", number),
            ("street", f"{house} {street} Street"),
            ("code", code),
            ("thing", thing),
            ("colour", colour),
            ("day", rng.choice(DAYS)),
        ],
        rng.randint(3, 5),
    )
    head = "; ".join(f"{key}: {value}" for key, value in facts)
    tail = " ".join(f"The {key} is {value}." for key, value in rng.sample(facts, rng.randint(1, len(facts))))
    return f"{head}\n{tail}"


def _question(w: Words) -> str:
    rng = w.rng
    name, thing, place, number, day = w.name(), w.product(), w.place(), w.number(3), rng.choice(DAYS)
    colour, order = rng.choice(COLOURS), w.number(5)
    text = rng.choice(
        [
            f"{name} took the {colour} {thing} to {place} on {day} and paid {number} crowns for order {order}.",
            f"Order {order}: on {day} the {thing}, which is {colour}, went to {place}. {name} paid {number} crowns.",
            f"For {number} crowns {name} sent the {thing} in {colour} to {place}. Order {order}, {day}.",
        ]
    )
    pairs = [
        ("Who took the " + thing, f"{name} took the {thing}."),
        (f"What did {name} take", f"{name} took the {thing}."),
        ("What colour was it", f"The {thing} was {colour}."),
        ("Which order", f"It was order {order}."),
        ("Where did it go", f"It went to {place}."),
        ("When was it", f"It was on {day}."),
        ("What was paid", f"{name} paid {number} crowns."),
    ]
    asked = rng.sample(pairs, rng.randint(2, 5))
    return "\n".join([text, *(f"{question}? {answer}" for question, answer in asked)])


def _recipe(w: Words) -> str:
    rng = w.rng
    dish, cook, count, minutes = w.place(), w.first_name(), w.number(2), w.number(2)
    return (
        f"{dish} soup, as {cook} makes it: take {count} onions and boil them for {minutes} minutes. "
        f"Stir with a {rng.choice(COLOURS)} spoon. After {minutes} minutes add salt. "
        f"{cook} says that {dish} soup with {count} onions tastes best on a {rng.choice(_WEATHER)} {rng.choice(DAYS)}."
    )


def _repeat(w: Words) -> str:
    kinds: list[Callable[[], str]] = [w.name, w.product, w.code, w.place, lambda: w.number(5), lambda: w.number(3)]
    draw = w.rng.choice(kinds)
    said = [draw() for _ in range(w.rng.randint(2, 5))]
    again = ", ".join(said)
    return w.rng.choice(
        [f"Say it again: {again}. Again: {again}.", f"{again}\n{again}", f"First {again}, then {again}."]
    )


def _list(w: Words) -> str:
    rng = w.rng
    owner = w.first_name()
    things = [w.product() for _ in range(rng.randint(2, 3))]
    chosen = rng.choice(things)
    return (
        f"{owner} has {len(things)} things: " + ", ".join(f"the {thing}" for thing in things) + ". "
        f"{owner} likes the {chosen} best and keeps the {chosen} in the {rng.choice(_PLACES)}."
    )
