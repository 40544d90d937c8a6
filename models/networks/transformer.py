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

from models.gazetteer import INPUT as GAZETTEER_INPUT
from models.networks.crf import Crf
from models.networks.protocol import Network


class TransformerNetwork(Network):
    """Encoder, then dropout, then a linear layer per question: one forward pass, up to two answers.

    n_labels: C, 0 for no intent head; it reads the mean of the real tokens' states.
    n_tags: K, 0 for no tag head; it reads every token's state.
    crf: what it learns of the order of tags beside its answers, None where it learns none of it.
    gazetteer: how it reads the terms that were found in the text, None where it reads none.
    intent_prior: what the intent takes from tags that do not go with it, None where it takes nothing.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        *,
        n_labels: int,
        n_tags: int,
        dropout: float,
        crf: Crf | None = None,
        gazetteer: GazetteerEmbedding | None = None,
        intent_prior: IntentPrior | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        n_hidden = int(encoder.config.hidden_size)
        self.intent_head = nn.Linear(n_hidden, n_labels) if n_labels else None
        self.tag_head = nn.Linear(n_hidden, n_tags) if n_tags else None
        self.crf = crf
        self.gazetteer = gazetteer
        self.intent_prior = intent_prior
        self._reads_token_types = "token_type_ids" in inspect.signature(encoder.forward).parameters

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, all int64 [B, T], in the order that `forward` takes them."""
        names = ("input_ids", "attention_mask")
        return names if self.gazetteer is None else (*names, GAZETTEER_INPUT)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the answers, in the order that `forward` gives them."""
        heads = {"intent_logits": self.intent_head, "tag_logits": self.tag_head}
        return tuple(name for name, head in heads.items() if head is not None)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """`intent_logits` [B, C] and `tag_logits` [B, T, K], those it has, of `input_names` [B, T]."""
        input_ids, attention_mask, *others = inputs
        return self.answer(self.states(input_ids, attention_mask, *others), attention_mask)

    def attended(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Which tokens are read, [B, T], or which of them by which, [B, T reading, T read]: 1, otherwise 0."""
        del input_ids
        return attention_mask

    def states(self, input_ids: Tensor, attention_mask: Tensor | None, gazetteer: Tensor | None = None) -> Tensor:
        """The encoder's last states [B, T, H]."""
        arguments = {"token_type_ids": torch.zeros_like(input_ids)} if self._reads_token_types else {}
        if self.gazetteer is None or gazetteer is None:
            arguments["input_ids"] = input_ids
        else:
            words_BTH: Tensor = self.encoder.get_input_embeddings()(input_ids)
            arguments["inputs_embeds"] = words_BTH + self.gazetteer(gazetteer)
        states_BTH: Tensor = self.encoder(
            attention_mask=attention_mask, return_dict=True, **arguments
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
            # Not while training: the tag head would learn to make up for it.
            if self.intent_prior is not None and not self.training:
                outputs["tag_logits"] = outputs["tag_logits"] + self.intent_prior(outputs["intent_logits"])
        return outputs


class GazetteerEmbedding(nn.Module):
    """What is added to a token's embedding for the terms that it is part of; nothing before training.

    While training, each type's matches in a text go unseen with the chance `dropout`, so that the network also learns
    to do without: a catalogue never has all terms, and some of its terms are common words.
    """

    def __init__(self, n_types: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * n_types, n_hidden))
        self.dropout = dropout
        self.bits: Tensor
        self.register_buffer("bits", 2 ** torch.arange(2 * n_types), persistent=False)

    def forward(self, gazetteer: Tensor) -> Tensor:
        """Vectors [B, T, H] of the bits [B, T] that `models.gazetteer` gives."""
        matches_BTG = torch.bitwise_and(gazetteer.unsqueeze(-1), self.bits).ne(0).to(self.weight.dtype)
        if self.training:
            is_seen_BG = torch.rand(len(gazetteer), len(self.bits) // 2) >= self.dropout
            matches_BTG = matches_BTG * is_seen_BG.repeat_interleave(2, dim=1).unsqueeze(1)
        return matches_BTG @ self.weight


class IntentPrior(nn.Module):
    """What is added to the tags' logits for a text's intent: `penalties_CK`, weighed by the chances of intents."""

    def __init__(self, penalties_CK: Tensor) -> None:
        super().__init__()
        self.penalties_CK: Tensor
        self.register_buffer("penalties_CK", penalties_CK, persistent=False)

    def forward(self, intent_logits_BC: Tensor) -> Tensor:
        """Sums [B, 1, K], the same for every token; not a matrix product, which INT8 would round."""
        chances_BC1 = intent_logits_BC.softmax(-1).unsqueeze(-1)
        return (chances_BC1 * self.penalties_CK).sum(1, keepdim=True)


def first_position(encoder: nn.Module) -> int:
    """Where an encoder counts positions from: RoBERTa and its kin from behind that of padding, others from 0."""
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


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
