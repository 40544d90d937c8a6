"""A pretrained encoder with one head for each question asked of a text.

Shapes: B texts, T tokens, H hidden units, C intent labels, K tags.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from models.networks.protocol import Network


class TransformerNetwork(Network):
    """Encoder, then dropout, then a linear layer per question: one forward pass, up to two answers.

    n_labels: C, 0 for no intent head; it reads the mean of the real tokens' states.
    n_tags: K, 0 for no tag head; it reads every token's state.
    """

    def __init__(self, encoder: PreTrainedModel, *, n_labels: int, n_tags: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        n_hidden = int(encoder.config.hidden_size)
        self.intent_head = nn.Linear(n_hidden, n_labels) if n_labels else None
        self.tag_head = nn.Linear(n_hidden, n_tags) if n_tags else None
        self._reads_token_types = "token_type_ids" in inspect.signature(encoder.forward).parameters

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the answers, in the order that `forward` gives them."""
        heads = {"intent_logits": self.intent_head, "tag_logits": self.tag_head}
        return tuple(name for name, head in heads.items() if head is not None)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """`intent_logits` [B, C] and `tag_logits` [B, T, K], those it has, of int64 input_ids and mask [B, T]."""
        input_ids, attention_mask = inputs
        return self.answer(self.states(input_ids, attention_mask), attention_mask)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The encoder's last states [B, T, H]."""
        arguments = {"token_type_ids": torch.zeros_like(input_ids)} if self._reads_token_types else {}
        states_BTH: Tensor = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **arguments
        ).last_hidden_state
        return states_BTH

    def answer(self, states_BTH: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits from the encoder's states."""
        outputs = {}
        if self.intent_head is not None:
            mask_BT1 = attention_mask.unsqueeze(-1).to(states_BTH.dtype)
            mean_BH = (states_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            outputs["intent_logits"] = self.intent_head(self.dropout(mean_BH))
        if self.tag_head is not None:
            outputs["tag_logits"] = self.tag_head(self.dropout(states_BTH))
        return outputs


def load_encoder(directory: Path) -> PreTrainedModel:
    """Load a pretrained encoder (config.json, model.safetensors) in float32, without the pooler that no head reads."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        encoder: PreTrainedModel = AutoModel.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder
