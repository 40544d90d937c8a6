"""A ranker over numeric features: normalisation, layers, attention over the list, one score a document.

Shapes: B lists, D documents of the longest, F features, K knots, H hidden units; N documents of lists end to end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.protocol import Network

Normalisation = Literal["quantile", "log1p"]

_N_KNOTS = 33
_LARGEST = 4.0
"""Normalised values lie within +-4: a value beyond all of training moves a score no further."""


class QuantileScale(nn.Module):
    """A value's place among the quantiles of training, -1 to 1, linear between them; 0 for a constant feature."""

    def __init__(self, features_NF: NDArray[np.float32]) -> None:
        super().__init__()
        knots_KF = np.stack([_quantiles(column_N) for column_N in features_NF.T], axis=1)
        widths_KF = np.diff(knots_KF, axis=0)
        self.starts_KF = _constant(self, "starts_KF", knots_KF[:-1])
        self.scales_KF = _constant(self, "scales_KF", _inverse(widths_KF))
        # Equal quantiles are one step: each of the knots there adds its share as soon as the value is above them.
        self.steps_KF = _constant(self, "steps_KF", widths_KF == 0)
        self.varies_F = _constant(self, "varies_F", knots_KF[-1] > knots_KF[0])

    def forward(self, features: Tensor) -> Tensor:
        """Normalise finite features [..., F]."""
        above = features.unsqueeze(-2) - self.starts_KF
        filled = (above * self.scales_KF).clamp(0, 1) + (above > 0).to(above.dtype) * self.steps_KF
        return (filled.mean(-2) * 2 - 1) * self.varies_F


class LogScale(nn.Module):
    """sign(x) log(1 + |x|), less its mean in training, over its deviation there; a constant feature gives 0."""

    def __init__(self, features_NF: NDArray[np.float32]) -> None:
        super().__init__()
        logs_NF = np.sign(features_NF) * np.log1p(np.abs(features_NF.astype(np.float64)))
        counts_F = np.maximum((~np.isnan(logs_NF)).sum(0), 1)
        means_F = np.nansum(logs_NF, axis=0) / counts_F
        deviations_F = np.sqrt(np.nansum((logs_NF - means_F) ** 2, axis=0) / counts_F)
        self.means_F = _constant(self, "means_F", means_F)
        self.scales_F = _constant(self, "scales_F", _inverse(deviations_F))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise finite features [..., F]."""
        logs = features.sign() * features.abs().log1p()
        return ((logs - self.means_F) * self.scales_F).clamp(-_LARGEST, _LARGEST)


class ListwiseNetwork(Network):
    """Layers over each document's features, then attention blocks over the list, then a score.

    features_NF: of the training rows, NaN where missing; what normalises is computed from them once, and is part of the
    graph. A missing value becomes a number that is learned for its feature.
    Without attention the input is [N, F] and a document's score depends on nothing but its features; with it the inputs
    are [B, D, F] and a mask [B, D], 0 where a list is padded, and a score depends on the documents of its own list.
    """

    def __init__(
        self,
        features_NF: NDArray[np.float32],
        *,
        normalisation: Normalisation,
        hidden: Sequence[int],
        dropout: float,
        n_attention_layers: int,
        n_heads: int,
    ) -> None:
        super().__init__()
        n_features = features_NF.shape[1]
        self.scale = QuantileScale(features_NF) if normalisation == "quantile" else LogScale(features_NF)
        self.missing_F = nn.Parameter(torch.zeros(n_features))
        layers: list[nn.Module] = []
        for n_in, n_out in zip((n_features, *hidden), hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(_Block(hidden[-1], n_heads, dropout) for _ in range(n_attention_layers))
        self.head = nn.Linear(hidden[-1], 1)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The one answer."""
        return ("score",)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """`score` [N], or [B, D] with attention."""
        features = inputs[0]
        is_missing = features.isnan()
        normalised = self.scale(features.masked_fill(is_missing, 0))
        states = self.layers(torch.where(is_missing, self.missing_F, normalised))
        for block in self.blocks:
            states = block(states, inputs[1])
        return {"score": self.head(states).squeeze(-1)}


class _Block(nn.Module):
    """Self-attention over the documents of a list, then a layer for each, each added to what it read.

    As an encoder block of Vaswani et al. 2017 without positions: Pobrotyn et al. 2020, "Context-Aware Learning to Rank
    with Self-Attention", section 3. The order in which the documents came says nothing.
    """

    def __init__(self, n_hidden: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.size = n_hidden // n_heads
        self.first_norm, self.second_norm = nn.LayerNorm(n_hidden), nn.LayerNorm(n_hidden)
        self.projections = nn.Linear(n_hidden, 3 * n_hidden)
        self.joined = nn.Linear(n_hidden, n_hidden)
        self.layers = nn.Sequential(nn.Linear(n_hidden, 2 * n_hidden), nn.ReLU(), nn.Linear(2 * n_hidden, n_hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BDH: Tensor, mask_BD: Tensor) -> Tensor:
        """New states [B, D, H]; padded documents are read by none."""
        n_lists, n_documents, n_hidden = states_BDH.shape
        parts = self.projections(self.first_norm(states_BDH)).view(n_lists, n_documents, 3, self.n_heads, self.size)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        logits = queries @ keys.transpose(-1, -2) / math.sqrt(self.size)
        # Added, not set: -inf in a row of nothing but padding would be NaN.
        weights = (logits + (mask_BD - 1.0)[:, None, None, :] * 1e9).softmax(-1)
        read_BDH = (weights @ values).transpose(1, 2).reshape(n_lists, n_documents, n_hidden)
        states_BDH = states_BDH + self.dropout(self.joined(read_BDH))
        result: Tensor = states_BDH + self.dropout(self.layers(self.second_norm(states_BDH)))
        return result


def _quantiles(column_N: NDArray[np.float32]) -> NDArray[np.float32]:
    present_N = column_N[~np.isnan(column_N)]
    if not len(present_N):
        return np.zeros(_N_KNOTS, dtype=np.float32)
    return np.quantile(present_N.astype(np.float64), np.linspace(0, 1, _N_KNOTS)).astype(np.float32)


def _inverse(widths: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / width, 0 for a width of 0."""
    return np.where(widths > 0, 1 / np.where(widths > 0, widths, 1), 0)


def _constant(module: nn.Module, name: str, array: NDArray[np.generic]) -> Tensor:
    """Keep numbers that are not trained with the module."""
    tensor = torch.from_numpy(array.astype(np.float32))
    module.register_buffer(name, tensor)
    return tensor
