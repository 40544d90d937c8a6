"""Tiny pretrained encoders of random weights, with a tokenizer: what a hub model's directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils import logging as transformers_logging

WORDS = ("red", "blue", "green", "nike", "adidas", "shoe", "##s", "shirt", "where", "is", "my", "order", "size", "10")
OTHER_WORDS = ("##ike", "n", *(word for word in reversed(WORDS) if word not in ("nike", "10")))
"""As many, by other numbers, and a brand in two pieces."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
N_TOKENS = len(WORDS) + len(SPECIAL)


def write_encoder(directory: Path, kind: str = "bert", words: Sequence[str] = WORDS) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of one of the kinds below, of 2 layers.

    words: `WORDS`, or as many others, of which it makes its tokens.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": N_TOKENS, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    transformers_logging.disable_progress_bar()
    if kind == "bert":
        model = BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=64))
    elif kind == "roberta":
        config = RobertaConfig(**sizes, intermediate_size=32, max_position_embeddings=66, pad_token_id=1)
        model = RobertaModel(config)
    elif kind == "mpnet":
        model = MPNetModel(MPNetConfig(**sizes, intermediate_size=32, max_position_embeddings=66, pad_token_id=1))
    elif kind == "modernbert":
        special = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        model = ModernBertModel(ModernBertConfig(**sizes, **special, intermediate_size=32, max_position_embeddings=64))
    elif kind == "distilbert":
        config = DistilBertConfig(
            vocab_size=N_TOKENS, dim=16, n_heads=2, n_layers=2, hidden_dim=32, max_position_embeddings=64
        )
        model = DistilBertModel(config)
    else:
        raise ValueError(kind)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
