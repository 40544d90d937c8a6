"""Labelled queries of the demo shop: templates are filled in around a product that the customer has in mind.

Whatever is filled in is tagged as it is written, so tags and texts cannot disagree; the same values make the Wish that
the demo's hidden relevance judges products by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.errors import InputError
from training.shop.catalogue import Product, pick
from training.shop.phrases import AFTER, BEFORE, INTENTS, WORDS
from training.shop.words import (
    AUDIENCES,
    BRANDS,
    CITIES,
    COLOURS,
    FEATURES,
    PRODUCT_TYPES,
    SIZES,
    SPOKEN_SIZES,
    UNCOUNTABLE,
    Said,
)

SplitName = Literal["train", "valid", "test"]

_TAUGHT_TEMPLATES = 0.85
"""Part of the valid and test queries whose template training queries use too."""
_TAUGHT_WORDS = 0.9
"""The same for words, where a list has an unseen half."""
_MOST_TRIES = 2000
"""Draws without a new text after which an intent counts as exhausted."""
_MISSPELT = 0.08
_POLITE = 0.12
_SHOUTED = 0.03
_CAPITALISED = 0.08
_QUESTION_MARK = 0.3

_CHOICE = re.compile(r"\(([^()]*)\)")
_WORD = re.compile(r"<(\w+)>")
_SLOT = re.compile(r"\{(\w+)\}")
_ASKS = re.compile(
    r"^(is|are|do|does|did|can|may|could|has|have|was|when|what|where|which|who|how|why|will|would|until|any)\b"
)

Part = tuple[str, str]
"""Words, and the entity type they are, or ""."""


@dataclass
class Wish:
    """What a query asks of a product, in the catalogue's own words; None where it does not say."""

    product_type: str | None = None
    brand: str | None = None
    colour: str | None = None
    size: str | None = None
    material: str | None = None
    audience: str | None = None
    feature: str | None = None
    lowest_price: float | None = None
    highest_price: float | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """One labelled query: words, their BIO tags, its intent, and what it asks for."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    label: str
    wish: Wish

    @property
    def text(self) -> str:
        """The words as a customer types them."""
        return " ".join(self.tokens)


def make_queries(
    rng: np.random.Generator, catalogue: Sequence[Product], split: SplitName, n_queries: int, seen: set[str]
) -> list[Query]:
    """Draw labelled queries of all intents in a random order; none is in `seen` (texts in lower case), which grows."""
    weights = np.array([phrases.weight for phrases in INTENTS.values()])
    labels = rng.choice(list(INTENTS), size=n_queries, p=weights / weights.sum())
    return [_new_query(rng, catalogue, split, str(label), seen) for label in labels]


def make_searches(rng: np.random.Generator, catalogue: Sequence[Product], n_queries: int) -> list[Query]:
    """Draw distinct queries that a result list answers, in all words: searches, bare product types, bare brands."""
    seen: set[str] = set()
    labels = rng.choice(["product_search", "product_type", "brand"], size=n_queries, p=[0.75, 0.15, 0.1])
    return [_new_query(rng, catalogue, "test", str(label), seen) for label in labels]


def _new_query(
    rng: np.random.Generator, catalogue: Sequence[Product], split: SplitName, label: str, seen: set[str]
) -> Query:
    templates = _templates(rng, label, split)
    for _ in range(_MOST_TRIES):
        product, template = pick(rng, catalogue), pick(rng, templates)
        if not _can_say(product, template):
            continue
        query = _make_query(rng, product, template, label, taught_only=split == "train")
        if query.text.lower() not in seen:
            seen.add(query.text.lower())
            return query
    raise InputError(f"a demo shop has only so many different queries of intent {label}; ask for fewer queries")


def _make_query(rng: np.random.Generator, product: Product, template: str, label: str, *, taught_only: bool) -> Query:
    speaker = _Speaker(rng, product, taught_only)
    parts = _fill(template, speaker)
    if template not in _BARE and rng.random() < _POLITE:
        parts = [(speaker.say(BEFORE), ""), *parts] if rng.random() < 0.5 else [*parts, (speaker.say(AFTER), "")]
    elif _ASKS.match(template) and rng.random() < _QUESTION_MARK:
        parts[-1] = (parts[-1][0] + "?", parts[-1][1])
    tokens, tags = _tokenize(parts)
    return Query(tuple(_type_by_hand(rng, tokens)), tuple(tags), label, speaker.wish)


_BARE = frozenset({"{item}", "{type}", "{types}", "{brand}"})


def _templates(rng: np.random.Generator, label: str, split: SplitName) -> Sequence[str]:
    """The known templates, or the split's own part of the unseen ones: every third is valid's, the others test's."""
    phrases = INTENTS[label]
    if split == "train" or rng.random() < _TAUGHT_TEMPLATES:
        return phrases.known
    return [line for i, line in enumerate(phrases.unseen) if (i % 3 == 0) == (split == "valid")]


def _can_say(product: Product, template: str) -> bool:
    """Whether the product has every property that the template names: nobody asks for a frying pan in size XL."""
    named = {"size": product.size, "colour": product.colour, "material": product.material}
    named["another_colour"] = product.colour
    return all(named.get(slot, "") is not None for slot in _SLOT.findall(template))


def _fill(template: str, speaker: _Speaker) -> list[Part]:
    """Decide choices and words, then fill the slots."""
    text = _CHOICE.sub(lambda match: pick(speaker.rng, match[1].split("|")), template)
    text = _WORD.sub(lambda match: speaker.say(WORDS[match[1]]), text)
    parts: list[Part] = []
    for token in text.split():
        slot = _SLOT.fullmatch(token)
        parts.extend(_SLOTS[slot[1]](speaker) if slot else [(token, "")])
    return parts


def _tokenize(parts: Sequence[Part]) -> tuple[list[str], list[str]]:
    tokens: list[str] = []
    tags: list[str] = []
    for text, entity in parts:
        for position, token in enumerate(text.split()):
            tokens.append(token)
            tags.append(f"{'I' if position else 'B'}-{entity}" if entity else "O")
    return tokens, tags


def _type_by_hand(rng: np.random.Generator, tokens: Sequence[str]) -> list[str]:
    """Write tokens as people do: mostly in lower case, with a slip of the finger now and then."""
    typed = [token.lower() for token in tokens]
    long_words = [i for i, token in enumerate(typed) if len(token) > 4 and token.isalpha()]
    if long_words and rng.random() < _MISSPELT:
        slip = pick(rng, long_words)
        typed[slip] = _misspell(rng, typed[slip])
    case = rng.random()
    if case < _SHOUTED:
        return [token.upper() for token in typed]
    if case < _SHOUTED + _CAPITALISED:
        typed[0] = typed[0].capitalize()
    return typed


def _misspell(rng: np.random.Generator, word: str) -> str:
    """Drop, double or swap letters inside a word; the first letter is nearly never wrong."""
    at = int(rng.integers(1, len(word) - 1))
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )
    return pick(rng, slips)


@dataclass
class _Speaker:
    """A customer with a product in mind: names its properties, and remembers in `wish` which ones were said.

    taught_only: use no word of an unseen half, as training queries do.
    """

    rng: np.random.Generator
    product: Product
    taught_only: bool
    wish: Wish = field(default_factory=Wish)

    def say(self, ways: Said) -> str:
        """One of the ways to say a thing."""
        if self.taught_only or not ways.unseen or self.rng.random() < _TAUGHT_WORDS:
            return pick(self.rng, ways.known)
        return pick(self.rng, ways.unseen)

    def type(self) -> list[Part]:
        self.wish.product_type = self.product.product_type
        return [(self.say(_SAID_TYPES[self.product.product_type]), "product_type")]

    def types(self) -> list[Part]:
        ((name, entity),) = self.type()
        return [(plural(name), entity)]

    def a_type(self) -> list[Part]:
        ((name, entity),) = self.type()
        if is_plural(name) or name in UNCOUNTABLE:
            return [(name, entity)]
        return [("an" if name[0] in "aeiou" and not name.startswith("eu") else "a", ""), (name, entity)]

    def another_type(self) -> list[Part]:
        names = [kind.said for kind in PRODUCT_TYPES if kind.name != self.product.product_type]
        return [(self.say(pick(self.rng, names)), "product_type")]

    def brand(self) -> list[Part]:
        brands = BRANDS[self.product.department]
        brand = (
            pick(self.rng, brands.known)
            if self.taught_only and self.product.brand in brands.unseen
            else self.product.brand
        )
        self.wish.brand = brand
        return [(brand, "brand")]

    def colour(self) -> list[Part]:
        assert self.product.colour is not None
        self.wish.colour = self.product.colour
        return [(self.say(COLOURS[self.product.colour]), "colour")]

    def another_colour(self) -> list[Part]:
        others = [ways for colour, ways in COLOURS.items() if colour != self.product.colour]
        return [(self.say(pick(self.rng, others)), "colour")]

    def size(self) -> list[Part]:
        assert self.product.size is not None
        assert self.product.size_system is not None
        self.wish.size = self.product.size
        return [(_spell_size(self.say(SIZES[self.product.size_system].ways), self.product.size), "size")]

    def material(self) -> list[Part]:
        assert self.product.material is not None
        self.wish.material = self.product.material
        return [(self.product.material, "material")]

    def feature(self) -> list[Part]:
        ways = FEATURES[self.product.department]
        own = [feature for feature in self.product.features if not self.taught_only or feature in ways.known]
        feature = pick(self.rng, own or ways.known)
        self.wish.feature = feature
        return [(feature, "feature")]

    def audience(self) -> list[Part]:
        assert self.product.audience is not None
        self.wish.audience = self.product.audience
        phrase = self.say(AUDIENCES[self.product.audience])
        whom = phrase.removeprefix("for ")
        return [(whom, "audience")] if whom == phrase else [("for", ""), (whom, "audience")]

    def price(self) -> list[Part]:
        around = float(self.product.price) * float(self.rng.uniform(1.0, 1.6))
        high = max(5, round(around / 5) * 5 if around < 100 else round(around / 50) * 50)
        if self.rng.random() < 0.15:
            low = max(1, high // 10 * 5)
            self.wish.lowest_price, self.wish.highest_price = low, high
            return [(f"between {low} and {high}", "price")]
        self.wish.highest_price = high
        return [(self.say(_PRICE_LIMITS).format(high), "price")]

    def amount(self) -> list[Part]:
        return [(pick(self.rng, ("{} euros", "{} dollars", "{} pounds")).format(pick(self.rng, _AMOUNTS)), "price")]

    def goods(self) -> list[Part]:
        """A product as one points at it in a sentence: `red velloro boot`."""
        parts: list[Part] = []
        if self.product.colour and self.rng.random() < 0.45:
            parts += self.colour()
        if self.rng.random() < 0.4:
            parts += self.brand()
        return parts + self.type()

    def item(self) -> list[Part]:
        """A product as one searches for it: its type with at least one property, as a phrase or as loose keywords."""
        name = self.types() if self.rng.random() < 0.5 else self.type()
        asked = self._asked()
        said = {what: _SLOTS[what](self) for what in asked}
        if self.rng.random() < 0.2:
            phrases = [name, *said.values()]
            return [part for i in self.rng.permutation(len(phrases)) for part in phrases[i]]
        before: list[Part] = []
        after: list[Part] = []
        for what, parts in said.items():
            if what in _PREPOSITIONS and self.rng.random() < 0.25:
                after += [(pick(self.rng, _PREPOSITIONS[what]), ""), *parts]
            elif what in _AFTER_NOUN or parts[0][0] == "for":
                after += parts
            else:
                before += parts
        return before + name + after

    def _asked(self) -> list[str]:
        """Which properties a search names: those that its product has, by how often people ask for them."""
        has = {
            "brand": True,
            "colour": self.product.colour is not None,
            "size": self.product.size is not None,
            "material": self.product.material is not None,
            "audience": self.product.audience in AUDIENCES,
            "feature": True,
            "price": True,
        }
        open_to = [what for what in _ASKED if has[what]]
        asked = [what for what in open_to if self.rng.random() < _ASKED[what]]
        return asked or [pick(self.rng, open_to)]

    def order_id(self) -> list[Part]:
        number = int(self.rng.integers(10_000, 10_000_000))
        shape = self.say(_ORDER_IDS)
        return [(shape.format(number), "order_id")]

    def city(self) -> list[Part]:
        return [(self.say(CITIES), "city")]


_SAID_TYPES = {kind.name: kind.said for kind in PRODUCT_TYPES}
_ASKED = {"audience": 0.3, "colour": 0.4, "feature": 0.2, "material": 0.2, "brand": 0.35, "size": 0.3, "price": 0.25}
"""How often a search names a property."""
_AFTER_NOUN = frozenset({"size", "price"})
_PREPOSITIONS = {"colour": ("in",), "material": ("made of", "in"), "brand": ("by", "from"), "size": ("in",)}
_PRICE_LIMITS = Said(
    ("under {}", "below {}", "less than {}", "under {} euros", "max {}"), ("up to {}", "not more than {}", "within {}")
)
_ORDER_IDS = Said(("{}", "{}", "#{}"), ("rk-{}", "no.{}"))
_AMOUNTS = (10, 20, 25, 30, 50, 75, 100, 150)
_SLOTS: dict[str, Callable[[_Speaker], list[Part]]] = {
    "type": _Speaker.type,
    "types": _Speaker.types,
    "a_type": _Speaker.a_type,
    "another_type": _Speaker.another_type,
    "brand": _Speaker.brand,
    "colour": _Speaker.colour,
    "another_colour": _Speaker.another_colour,
    "size": _Speaker.size,
    "material": _Speaker.material,
    "feature": _Speaker.feature,
    "audience": _Speaker.audience,
    "price": _Speaker.price,
    "amount": _Speaker.amount,
    "goods": _Speaker.goods,
    "item": _Speaker.item,
    "order_id": _Speaker.order_id,
    "city": _Speaker.city,
    "another_city": _Speaker.city,
}
"""What a template's {slot} calls."""


def plural(name: str) -> str:
    """The English plural of a type's name; a name without one, or already plural, stays as it is."""
    if is_plural(name) or name in UNCOUNTABLE:
        return name
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ves" if name.endswith("shelf") else name + "s"


def is_plural(name: str) -> bool:
    """Whether a type's name is a plural already (jeans, pair of socks)."""
    return name.endswith("s") and not name.endswith("ss")


def _spell_size(way: str, value: str) -> str:
    """Write a size the way somebody says it: US shoe sizes are 33 below European ones."""
    return way.format(
        v=value,
        n=value.split()[0],
        joined=value.replace(" ", ""),
        us=int(value) - 33 if value.isdigit() else "",
        spoken=SPOKEN_SIZES.get(value, value),
    )
