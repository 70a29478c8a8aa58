"""Customer-support rows: twelve wishes, each in phrasings for training and phrasings kept for a harder test."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tools.embedded.words import Words


@dataclass(frozen=True)
class Wish:
    """What customers want: how training says it, how only the test says it, and the right answer."""

    asked: tuple[str, ...]
    asked_otherwise: tuple[str, ...]
    answer: str


WISHES = (
    Wish(
        (
            "Hello, I am {name}. Where is my order {order}?",
            "Where is order {order}? My name is {name}.",
            "{name} here. I am still waiting for order {order}.",
            "My order {order} has not come yet. {name}",
            "Can you tell {name} where order {order} is?",
        ),
        (
            "Any news about order {order}? It was placed by {name}.",
            "{name} would like to track order {order}.",
        ),
        "Hello {name}, order {order} has left our store and will arrive within three days.",
    ),
    Wish(
        (
            "I want my money back for the {product}, order {order}.",
            "Please refund the {product} from order {order}.",
            "The {product} in order {order} is not for me. Can I have a refund?",
            "Refund for order {order}, please. It was a {product}.",
            "I sent the {product} back. When is the money for order {order} coming?",
        ),
        (
            "How do I get a refund for the {product}? The order is {order}.",
            "Order {order}: refund the {product}.",
        ),
        "We will refund the {product} of order {order} within five days.",
    ),
    Wish(
        (
            "Please cancel order {order}. {name}",
            "I am {name} and I want to cancel order {order}.",
            "Can you stop order {order}? My name is {name}.",
            "{name} here, cancel my order {order}, please.",
            "I do not want order {order} any more. Regards, {name}",
        ),
        (
            "Order {order} was a mistake, cancel it. {name}",
            "My name is {name}. Is it too late to cancel {order}?",
        ),
        "Order {order} is cancelled, {name}. You will not be charged.",
    ),
    Wish(
        (
            "Please send order {order} to {house} {street} Street.",
            "I moved. Order {order} must go to {house} {street} Street.",
            "My new address is {house} {street} Street. It is about order {order}.",
            "Can order {order} go to {house} {street} Street?",
            "Wrong address on order {order}. It is {house} {street} Street.",
        ),
        (
            "Ship {order} to {house} {street} Street instead.",
            "Order {order}: the address is {house} {street} Street.",
        ),
        "Done. Order {order} goes to {house} {street} Street.",
    ),
    Wish(
        (
            "My {product} arrived broken. I am {name}.",
            "The {product} is broken. Name: {name}.",
            "{name} here. The {product} came in pieces.",
            "I am {name}, and my {product} does not work.",
            "There is a crack in my {product}. {name}",
        ),
        ("{name} got a damaged {product}.", "My {product} was broken in the box. My name is {name}."),
        "We are sorry, {name}. A new {product} is on its way to you.",
    ),
    Wish(
        (
            "How long is the warranty on the {product}?",
            "Is there a warranty for my {product}?",
            "Tell me about the warranty of the {product}.",
            "Does the {product} have a warranty?",
            "What is the warranty for a {product}?",
        ),
        (
            "I need to know the warranty of a {product}.",
            "For how many years is the {product} under warranty?",
        ),
        "The {product} has a warranty of two years.",
    ),
    Wish(
        (
            "Please send the invoice for order {order} to {name}.",
            "I need an invoice for order {order}. {name}",
            "{name} here. The invoice of order {order} is missing.",
            "Can I have the invoice for {order}? I am {name}.",
            "Where is the invoice for order {order}? My name is {name}.",
        ),
        (
            "My name is {name} and I never got an invoice for {order}.",
            "Invoice for {order}, please. Thanks, {name}",
        ),
        "The invoice for order {order} is in your inbox, {name}.",
    ),
    Wish(
        (
            "Do you have the {product}?",
            "Is the {product} in stock?",
            "I am looking for the {product}.",
            "Can I still get the {product}?",
            "Is there a {product} left?",
        ),
        ("I wonder if you have a {product} for me.", "Are you out of the {product}?"),
        "Yes, the {product} is in stock and you can order it today.",
    ),
    Wish(
        (
            "I want to pick up my {product}. I am {name}.",
            "{name} here. Is my {product} ready?",
            "Can {name} collect the {product} now?",
            "My name is {name} and I will come for the {product}.",
            "I will fetch the {product} myself. {name}",
        ),
        (
            "{name} would like to come by for the {product}.",
            "May I collect the {product} at the shop? {name}",
        ),
        "The {product} is ready at our counter, {name}.",
    ),
    Wish(
        (
            "The code {code} does not work.",
            "My voucher {code} is not accepted.",
            "I cannot use code {code}.",
            "Why is {code} not valid?",
            "The shop says that {code} is wrong.",
        ),
        ("I typed {code} and nothing happened.", "Voucher {code} gives an error."),
        "Please try {code} again. The code {code} is active now.",
    ),
    Wish(
        (
            "Please call me at {phone}. I am {name}.",
            "Can someone phone {name} at {phone}?",
            "{name} here, my number is {phone}. Call me, please.",
            "I want to talk to a person. {phone}, {name}",
            "My number is {phone} and my name is {name}. I need a call.",
        ),
        ("A call to {phone} would help. {name}", "I am {name}. Ring me on {phone}."),
        "Thank you, {name}. We will call {phone} today.",
    ),
    Wish(
        (
            "How much is the {product}?",
            "What does the {product} cost?",
            "What is the price of the {product}?",
            "Tell me the price of a {product}.",
            "Is the {product} expensive?",
        ),
        ("How much do I pay for a {product}?", "I would like to know what you charge for the {product}."),
        "You can see the price of the {product} in our shop.",
    ),
)


def rows(rng: random.Random, count: int, *, held: bool, otherwise: bool = False) -> list[dict[str, str]]:
    """Prompt and completion of `count` customers, all wishes equally often, no row twice."""
    made: dict[str, dict[str, str]] = {}
    while len(made) < count:
        wish = WISHES[len(made) % len(WISHES)]
        slots = _slots(Words(rng, held=held))
        prompt = rng.choice(wish.asked_otherwise if otherwise else wish.asked).format(**slots)
        made.setdefault(prompt, {"prompt": prompt, "completion": wish.answer.format(**slots)})
    return list(made.values())


def _slots(w: Words) -> Mapping[str, str]:
    return {
        "name": w.name(),
        "order": w.number(5),
        "product": w.product(),
        "house": w.number(2),
        "street": w.place(),
        "code": w.code(),
        "phone": w.number(6),
    }
