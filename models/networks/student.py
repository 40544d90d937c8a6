"""The encoder of a student: a small BERT that begins with what its teacher knows of single tokens.

Shapes: V tokens of the vocabulary, D dimensions of what the teacher knows of each, H hidden units of the student.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

_SPREAD = 0.05
"""Standard deviation of an embedding's components: about BERT's own."""


def student_encoder(
    table_VD: Tensor,
    *,
    n_layers: int,
    n_hidden: int,
    n_heads: int,
    n_intermediate: int,
    dropout: float,
    n_positions: int,
    pad: int,
) -> PreTrainedModel:
    """Build the encoder; its layers are random, its token embeddings the principal components of `table_VD`."""
    config = BertConfig(
        vocab_size=len(table_VD),
        hidden_size=n_hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=n_intermediate,
        max_position_embeddings=n_positions,
        type_vocab_size=1,
        pad_token_id=pad,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    encoder = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        components_VH = principal_components(table_VD, n_hidden)
        encoder.embeddings.word_embeddings.weight[:, : components_VH.shape[1]] = components_VH
    return encoder


def principal_components(table_VD: Tensor, n_components: int) -> Tensor:
    """Project the rows on the directions of their largest variance, scaled as a whole to BERT's spread; [V, <= D].

    By the eigenvectors of the covariance [D, D]; the signs are fixed, so that the result is repeatable.
    """
    centred_VD = table_VD.double() - table_VD.double().mean(0)
    _, vectors_DD = torch.linalg.eigh(centred_VD.T @ centred_VD)
    chosen_DH = vectors_DD.flip(1)[:, :n_components]
    largest_H = chosen_DH.gather(0, chosen_DH.abs().argmax(0, keepdim=True)).squeeze(0)
    components_VH: Tensor = centred_VD @ (chosen_DH * largest_H.sign())
    components_VH *= _SPREAD / max(components_VH.std().item(), 1e-12)
    return components_VH.float()
