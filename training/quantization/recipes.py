"""Ways to make `model.int8.onnx`, by name: what becomes 8-bit integers, and with which scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

RecipeName = Literal[
    "static",
    "static_no_smoothing",
    "static_symmetric",
    "static_per_tensor",
    "static_spared",
    "static_small_tables",
    "by_token",
    "by_token_per_tensor",
    "by_token_spared",
    "weights_8bit",
    "weights_4bit",
    "tables_8bit",
    "onnxruntime_dynamic",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How products and embedding tables are quantized.

    activations: `static`, one range a tensor, measured on training texts; `token`, each row by its own largest value;
    `batch`, one range a tensor and batch, by ONNX Runtime's own tool; `float`, none. product_bits: of the weights of
    products (32: float32). is_per_column: one scale a column of the weights, otherwise one a matrix. is_symmetric: a
    static range has zero in its middle. is_smooth: channels of a static range that differ much are made alike.
    spared: what the most harmful products become (None: none is spared). table_bits: of embedding tables.
    """

    activations: Literal["static", "token", "float", "batch"]
    product_bits: Literal[4, 8, 32] = 8
    is_per_column: bool = True
    is_symmetric: bool = False
    is_smooth: bool = True
    spared: Literal["token", "float"] | None = None
    table_bits: Literal[4, 8] = 8


RECIPES: Mapping[RecipeName, Recipe] = MappingProxyType(
    {
        "static": Recipe("static"),
        "static_no_smoothing": Recipe("static", is_smooth=False),
        "static_symmetric": Recipe("static", is_symmetric=True),
        "static_per_tensor": Recipe("static", is_per_column=False),
        "static_spared": Recipe("static", spared="token"),
        "static_small_tables": Recipe("static", table_bits=4),
        "by_token": Recipe("token"),
        "by_token_per_tensor": Recipe("token", is_per_column=False),
        "by_token_spared": Recipe("token", spared="float"),
        "weights_8bit": Recipe("float", product_bits=8),
        "weights_4bit": Recipe("float", product_bits=4, table_bits=4),
        "tables_8bit": Recipe("float", product_bits=32),
        "onnxruntime_dynamic": Recipe("batch"),
    }
)

LADDERS: Mapping[Literal["latency", "size"], tuple[RecipeName, ...]] = MappingProxyType(
    {
        "latency": ("static", "static_spared", "by_token", "by_token_spared"),
        "size": ("static_small_tables", "static", "static_spared", "by_token", "by_token_spared"),
    }
)
"""What `recipes: default` tries, best first; the first one within the budget is kept."""
