"""A pretrained encoder that reads a query and a title in one row of tokens, and scores the pair.

Shapes: B pairs, T tokens of a pair, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from models.networks.transformer import TransformerNetwork, first_position

_N_HIDDEN = 64
_FIRST_SLOPE = 5.0
_FIRST_CENTRE = 0.5
_ROWS_TOGETHER = 32
_UNREAD = -1e9


class CrossEncoderNetwork(TransformerNetwork):
    """score = w cos(u, v) + b + layers(u, v, |u - v|, u v), u and v the means of the query's and the title's states.

    The features are those of Reimers and Gurevych 2019, "Sentence-BERT", section 3, of states that have read each
    other. The last layer starts at 0: before any training the order is that of the cosine, which encoders trained on
    sentence similarity have learned already.

    separator: id of the token that ends the query; the title begins behind it. reads_apart: no token of the query
    attends to one of the title, nor the reverse, and positions count from the first token of each: u and v are those of
    two texts read alone, as such encoders were trained, and only the head compares them.
    """

    def __init__(self, encoder: PreTrainedModel, *, separator: int, dropout: float, reads_apart: bool = False) -> None:
        super().__init__(encoder, n_labels=0, n_tags=0, dropout=dropout)
        n_states = int(encoder.config.hidden_size)
        self._separator = separator
        self._reads_apart = reads_apart
        self._has_second_type = self._reads_token_types and int(getattr(encoder.config, "type_vocab_size", 0)) > 1
        self._first_position = first_position(encoder)
        self.layer = nn.Linear(4 * n_states, _N_HIDDEN)
        self.head = nn.Linear(_N_HIDDEN, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.slope = nn.Parameter(torch.tensor(_FIRST_SLOPE))

    @property
    def output_names(self) -> tuple[str, ...]:
        """The one answer."""
        return ("score",)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """`score` [B] of int64 input_ids and mask [B, T].

        Pairs of like length go through the encoder together: in a list the longest title is often twice the mean.
        """
        input_ids, attention_mask = inputs
        if torch.compiler.is_exporting():
            return self.answer(self.states(input_ids, attention_mask), attention_mask)
        lengths_B = attention_mask.sum(1)
        order_B = lengths_B.argsort(stable=True)
        scores = []
        for rows in torch.split(order_B, _ROWS_TOGETHER):
            n_tokens = int(lengths_B[rows[-1]])
            mask = attention_mask[rows, :n_tokens]
            scores.append(self.answer(self.states(input_ids[rows, :n_tokens], mask), mask)["score"])
        return {"score": torch.cat(scores)[order_B.argsort()]}

    def attended(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mask [B, T], or read apart [B, T, T]: 1 where both are of the query or both of the title."""
        if not self._reads_apart:
            return attention_mask
        is_title_BT = self._is_title(input_ids)
        is_same_BTT = is_title_BT.unsqueeze(2) == is_title_BT.unsqueeze(1)
        return is_same_BTT.to(attention_mask.dtype) * attention_mask.unsqueeze(1)

    def _is_title(self, input_ids: Tensor) -> Tensor:
        ends_query = (input_ids == self._separator).to(torch.int64)
        return (ends_query.cumsum(1) - ends_query > 0).to(torch.int64)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None, gazetteer: Tensor | None = None) -> Tensor:
        """The encoder's last states, and behind them 1 at a token of the title: [B, T, H + 1]."""
        del gazetteer
        is_title_BT = self._is_title(input_ids)
        arguments = {}
        if self._reads_token_types:
            has_second_type = self._has_second_type and not self._reads_apart
            arguments["token_type_ids"] = is_title_BT if has_second_type else torch.zeros_like(input_ids)
        if self._reads_apart:
            arguments["position_ids"] = self._first_position + _places(is_title_BT)
            if attention_mask is not None:
                is_unread_BTT = self.attended(input_ids, attention_mask) == 0
                attention_mask = is_unread_BTT.unsqueeze(1).to(torch.float32) * _UNREAD
        states_BTH: Tensor = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **arguments
        ).last_hidden_state
        return torch.cat([states_BTH, is_title_BT.unsqueeze(-1).to(states_BTH.dtype)], dim=-1)

    def answer(self, states_BTH: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`score` [B] from what `states` gives."""
        states_BTH, is_title_BT1 = states_BTH[..., :-1], states_BTH[..., -1:]
        mask_BT1 = attention_mask.unsqueeze(-1).to(states_BTH.dtype)
        query_BH = _mean(states_BTH, mask_BT1 * (1 - is_title_BT1))
        title_BH = _mean(states_BTH, mask_BT1 * is_title_BT1)
        cosine_B = (query_BH * title_BH).sum(1) / (_length(query_BH) * _length(title_BH))
        features = torch.cat([query_BH, title_BH, (query_BH - title_BH).abs(), query_BH * title_BH], dim=1)
        learned_B1 = self.head(self.dropout(functional.gelu(self.layer(self.dropout(features)))))
        return {"score": learned_B1.squeeze(-1) + self.slope * (cosine_B - _FIRST_CENTRE)}


def _places(is_title_BT: Tensor) -> Tensor:
    """How many tokens of its own text stand before each: [B, T]."""
    places_BT = torch.ones_like(is_title_BT).cumsum(1) - 1
    return places_BT - is_title_BT * (1 - is_title_BT).sum(1, keepdim=True)


def _mean(states_BTH: Tensor, weights_BT1: Tensor) -> Tensor:
    return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1.0)


def _length(vectors_BH: Tensor) -> Tensor:
    # Not + 1e-12, which the exporter drops: 0 / 0 where a text has no token, and the root's gradient there.
    return vectors_BH.square().sum(1).clamp(min=1e-6).sqrt()
