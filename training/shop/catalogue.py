"""The demo shop's catalogue: products drawn type by type, with prices, sales and ratings that hang together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any, TypeVar

import numpy as np

from training.shop.words import (
    AUDIENCE_DEPARTMENTS,
    AUDIENCES,
    BRANDS,
    COLOURS,
    FEATURES,
    MODELS,
    NO_COLOUR,
    PALETTES,
    PRODUCT_TYPES,
    SIZES,
    ProductType,
)

TODAY = date(2026, 1, 1)
"""The day the shop's files speak of; the clicks lie before it."""

_OLDEST_DAYS = 1000
_NEW_DAYS = 1
_NO_STOCK_FIGURE = 0.08
"""Part of the products whose seller reports no stock."""
_SOLD_OUT = 0.07

_FITS = {"kids": slice(0, 4), "women": slice(0, 8), "men": slice(4, None)}
"""Shoe sizes by audience, of those from 36 to 48."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Product:
    """One line of `catalogue.jsonl`; None where a product has no such thing, or nobody knows it.

    popularity: views in the last 30 days. rating: mean of n_ratings stars (1-5). price: what it costs now, list_price
    what it cost before a discount. quality: hidden, about N(0, 1), what ratings and clicks follow; never written.
    """

    id: str
    title: str
    brand: str
    product_type: str
    department: str
    audience: str | None
    colour: str | None
    size: str | None
    size_system: str | None
    material: str | None
    features: tuple[str, ...]
    price: float
    list_price: float
    popularity: int
    rating: float | None
    n_ratings: int
    stock: int | None
    created: str
    description: str
    quality: float

    def to_json(self) -> dict[str, Any]:
        """The product as its file shows it: everything but the hidden quality."""
        fields = asdict(self)
        del fields["quality"]
        return fields


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


def brand_tier(brand: str) -> float:
    """How dear a brand is, 0.75 to 1.5 times the usual price: a fixed property of its name."""
    return 0.75 + 0.75 * (sum(map(ord, brand)) % 16) / 15


def make_catalogue(rng: np.random.Generator, n_products: int) -> list[Product]:
    """Draw products; every type gets an equal part, to within one."""
    types = [PRODUCT_TYPES[i % len(PRODUCT_TYPES)] for i in range(n_products)]
    return [_make_product(rng, f"p{number:05d}", kind) for number, kind in enumerate(types, start=1)]


def _make_product(rng: np.random.Generator, product_id: str, kind: ProductType) -> Product:
    brands = BRANDS[kind.department]
    brand = pick(rng, brands.known + brands.unseen)
    audience = pick(rng, ("unisex", *AUDIENCES)) if kind.department in AUDIENCE_DEPARTMENTS else None
    colour = _colour(rng, kind)
    size, size_price = _size(rng, kind, audience)
    material = pick(rng, kind.materials) if kind.materials else None
    known = FEATURES[kind.department].known + FEATURES[kind.department].unseen
    features = tuple(known[i] for i in sorted(rng.choice(len(known), size=2, replace=False)))

    quality = float(rng.normal())
    list_price = _shelf_price(kind.price * brand_tier(brand) * size_price * np.exp(0.1 * quality + 0.25 * rng.normal()))
    discount = float(rng.choice([0.1, 0.2, 0.3, 0.5])) if rng.random() < 0.25 else 0.0
    age_days = int(rng.integers(_NEW_DAYS, _OLDEST_DAYS))
    popularity = int(np.exp(3.5 + 0.5 * quality + 1.1 * rng.normal()) * min(1.0, age_days / 60))
    n_ratings = int(rng.poisson(popularity * min(age_days, 365) / 2000))
    title = _title(rng, kind, brand, audience, colour, size, material)
    return Product(
        id=product_id,
        title=title,
        brand=brand,
        product_type=kind.name,
        department=kind.department,
        audience=audience,
        colour=colour,
        size=size,
        size_system=kind.size,
        material=material,
        features=features,
        price=round(list_price * (1 - discount), 2),
        list_price=list_price,
        popularity=popularity,
        rating=_rating(rng, quality, n_ratings),
        n_ratings=n_ratings,
        stock=_stock(rng, popularity),
        created=(TODAY - timedelta(days=age_days)).isoformat(),
        description=_description(kind, brand, colour, material, features),
        quality=quality,
    )


def _colour(rng: np.random.Generator, kind: ProductType) -> str | None:
    palette = PALETTES.get(kind.department, tuple(COLOURS))
    return pick(rng, palette) if palette and kind.name not in NO_COLOUR else None


def _size(rng: np.random.Generator, kind: ProductType, audience: str | None) -> tuple[str | None, float]:
    """A size, and what it does to the price."""
    if kind.size is None:
        return None, 1.0
    system = SIZES[kind.size]
    values = system.values[_FITS.get(audience or "", slice(None))] if kind.size == "shoe" else system.values
    step = int(rng.integers(len(values)))
    factor = 0.6 + 0.9 * step / (len(values) - 1) if system.larger_costs_more else 1.0
    return values[step], factor


def _shelf_price(price: float) -> float:
    return float(max(1.99, np.floor(price) + 0.99 if price < 200 else 10 * np.round(price / 10) - 1))


def _rating(rng: np.random.Generator, quality: float, n_ratings: int) -> float | None:
    if n_ratings == 0:
        return None
    stars = 3.7 + 0.5 * quality + rng.normal() * 0.9 / np.sqrt(n_ratings)
    return round(float(np.clip(stars, 1, 5)), 1)


def _stock(rng: np.random.Generator, popularity: int) -> int | None:
    chance = rng.random()
    if chance < _NO_STOCK_FIGURE:
        return None
    return 0 if chance < _NO_STOCK_FIGURE + _SOLD_OUT else 1 + int(rng.poisson(4 + popularity / 10))


def _title(
    rng: np.random.Generator,
    kind: ProductType,
    brand: str,
    audience: str | None,
    colour: str | None,
    size: str | None,
    material: str | None,
) -> str:
    """A title as sellers write them: always brand and type, the rest more or less complete."""
    name = kind.name if kind.name == "tv" else kind.name.title()
    whom = {"men": "Men's", "women": "Women's", "kids": "Kids'"}.get(audience or "")
    made_of = material.title() if material and rng.random() < 0.7 else None
    head = [brand, pick(rng, MODELS), whom, made_of, name.upper() if name == "tv" else name]
    tail = [
        colour.title() if colour and rng.random() < 0.85 else None,
        SIZES[kind.size].title.format(v=size) if kind.size and rng.random() < 0.85 else None,
    ]
    return ", ".join(filter(None, [" ".join(filter(None, head)), *tail]))


def _description(
    kind: ProductType, brand: str, colour: str | None, material: str | None, features: tuple[str, ...]
) -> str:
    looks = " ".join(filter(None, [colour, material, kind.name]))
    return f"{looks.capitalize()} by {brand}: {' and '.join(features)}. For everyone who shops for {kind.department}."
