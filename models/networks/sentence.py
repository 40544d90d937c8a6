"""A pretrained encoder as it embeds whole texts, for `models.embedding`."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from models.networks.transformer import TransformerNetwork


class SentenceNetwork(TransformerNetwork):
    """The mean of a text's token states, scaled to length 1 (Reimers and Gurevych 2019, "Sentence-BERT", section 3)."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__(encoder, n_labels=0, n_tags=0, dropout=0.0)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The one answer."""
        return ("vector",)

    def answer(self, states_BTH: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`vector` [B, H] from the encoder's states."""
        mask_BT1 = attention_mask.unsqueeze(-1).to(states_BTH.dtype)
        mean_BH = (states_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        # Written out: ONNX Runtime's shape inference stumbles over the export of `normalize`, and prints so.
        return {"vector": mean_BH / mean_BH.square().sum(1, keepdim=True).sqrt()}
