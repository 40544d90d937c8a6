"""The demo shop's hidden truth: how much each product deserves a click for a query. No feature or label file holds it.

Shapes: N products of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.shop.catalogue import TODAY, Product
from training.shop.queries import Wish
from training.shop.words import COLOUR_FAMILIES, COLOURS

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truth:
    """Parameters of relevance, clicks and judges; `shop.json` keeps them for tests of debiasing and evaluation.

    attractiveness = product over the asked properties of (1 - loss[property] x (1 - match))
                     x sigmoid(appeal_bias + quality x quality_weight - value_weight x ln(price / median of its type))
                     x (sold_out where the stock is 0)
    examination of position r (from 1) = r ** -eta
    P(click) = examination x (click_noise + (1 - click_noise) x attractiveness)
    P(order | click) = order_rate x attractiveness
    label = number of grade_bounds that attractiveness + N(0, judge_noise) passes
    """

    loss: dict[str, float] = field(
        default_factory=lambda: {
            "type_match": 0.9,
            "brand_match": 0.5,
            "colour_match": 0.45,
            "size_match": 0.5,
            "material_match": 0.3,
            "audience_match": 0.6,
            "feature_match": 0.25,
            "price_match": 0.8,
        }
    )
    quality_weight: float = 1.2
    value_weight: float = 1.5
    appeal_bias: float = 0.8
    sold_out: float = 0.3
    eta: float = 1.0
    click_noise: float = 0.03
    order_rate: float = 0.25
    judge_noise: float = 0.07
    grade_bounds: tuple[float, float, float, float] = (0.15, 0.32, 0.52, 0.72)


class Shelf:
    """The catalogue by column, each [N]; a text that a product does not have is "", a number is NaN."""

    def __init__(self, catalogue: Sequence[Product]) -> None:
        self.products = catalogue
        self.product_type = _texts(product.product_type for product in catalogue)
        self.department = _texts(product.department for product in catalogue)
        self.brand = _texts(product.brand for product in catalogue)
        self.colour = _texts(product.colour for product in catalogue)
        self.size = _texts(product.size for product in catalogue)
        self.material = _texts(product.material for product in catalogue)
        self.audience = _texts(product.audience for product in catalogue)
        self.price = _numbers(product.price for product in catalogue)
        self.popularity = _numbers(product.popularity for product in catalogue)
        self.rating = _numbers(product.rating for product in catalogue)
        self.n_ratings = _numbers(product.n_ratings for product in catalogue)
        self.stock = _numbers(product.stock for product in catalogue)
        self.quality = _numbers(product.quality for product in catalogue)
        self.discount = _numbers(1 - product.price / product.list_price for product in catalogue)
        self.age_days = _numbers((TODAY - date.fromisoformat(product.created)).days for product in catalogue)
        self.price_to_median = np.log(self.price / self._type_medians())

    def department_of(self, product_type: str) -> str:
        """The department that sells a type."""
        return str(self.department[self.product_type == product_type][0])

    def _type_medians(self) -> Floats:
        types, type_of = np.unique(self.product_type, return_inverse=True)
        medians = np.array([np.median(self.price[type_of == i]) for i in range(len(types))])
        return np.asarray(medians[type_of])


def matches(shelf: Shelf, wish: Wish) -> dict[str, Floats]:
    """How well each product meets each property [N], 0 to 1; NaN throughout for a property that was not asked."""
    not_asked = np.full(len(shelf.products), np.nan)
    return {
        "type_match": not_asked if wish.product_type is None else _type_match(shelf, wish.product_type),
        "brand_match": not_asked if wish.brand is None else _equal(shelf.brand, wish.brand),
        "colour_match": not_asked if wish.colour is None else _colour_match(shelf, wish.colour),
        "size_match": not_asked if wish.size is None else _equal(shelf.size, wish.size),
        "material_match": not_asked if wish.material is None else _equal(shelf.material, wish.material),
        "audience_match": not_asked if wish.audience is None else _audience_match(shelf, wish.audience),
        "feature_match": not_asked if wish.feature is None else _feature_match(shelf, wish.feature),
        "price_match": not_asked if wish.highest_price is None else _price_match(shelf, wish),
    }


def attractiveness(shelf: Shelf, matched: dict[str, Floats], truth: Truth) -> Floats:
    """The hidden relevance of each product [N], 0 to 1, by the formula of Truth."""
    appeal = truth.appeal_bias + truth.quality_weight * shelf.quality - truth.value_weight * shelf.price_to_median
    attraction = 1 / (1 + np.exp(-appeal))
    for name, match in matched.items():
        attraction = attraction * (1 - truth.loss[name] * (1 - np.nan_to_num(match, nan=1.0)))
    return np.where(shelf.stock == 0, truth.sold_out, 1.0) * attraction


def _type_match(shelf: Shelf, product_type: str) -> Floats:
    related = shelf.department == shelf.department_of(product_type)
    return np.where(shelf.product_type == product_type, 1.0, np.where(related, 0.3, 0.0))


def _colour_match(shelf: Shelf, colour: str) -> Floats:
    family = next((family for family in COLOUR_FAMILIES if colour in family), {colour})
    assert family <= set(COLOURS)
    return np.where(shelf.colour == colour, 1.0, np.where(np.isin(shelf.colour, sorted(family)), 0.5, 0.0))


def _audience_match(shelf: Shelf, audience: str) -> Floats:
    return np.where(shelf.audience == audience, 1.0, np.where(shelf.audience == "unisex", 0.7, 0.0))


def _feature_match(shelf: Shelf, feature: str) -> Floats:
    return np.array([float(feature in product.features) for product in shelf.products])


def _price_match(shelf: Shelf, wish: Wish) -> Floats:
    """1 within the limits; outside, the ratio to the nearer limit, to the power 3."""
    high = np.inf if wish.highest_price is None else wish.highest_price
    low = 0.0 if wish.lowest_price is None else wish.lowest_price
    inside = np.minimum(high / shelf.price, shelf.price / low if low else np.inf)
    return np.asarray(np.minimum(1.0, inside) ** 3, dtype=np.float64)


def _equal(column: NDArray[np.str_], value: str) -> Floats:
    return np.asarray(column == value, dtype=np.float64)


def _texts(values: Any) -> NDArray[np.str_]:
    return np.array([value or "" for value in values], dtype=np.str_)


def _numbers(values: Any) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
