"""Tiny pretrained encoders of random weights, with a tokenizer: what a hub model's directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

WORDS = ("red", "blue", "green", "nike", "adidas", "shoe", "##s", "shirt", "where", "is", "my", "order", "size", "10")
OTHER_WORDS = ("##ike", "n", *(word for word in reversed(WORDS) if word not in ("nike", "10")))
"""As many, by other numbers, and a brand in two pieces."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
N_TOKENS = len(WORDS) + len(SPECIAL)
FROM_PADDING = {"max_position_embeddings": 66, "pad_token_id": 1}
"""Positions are counted from behind that of padding."""
KINDS = {
    "bert": {},
    "electra": {"embedding_size": 16},
    "roberta": FROM_PADDING,
    "xlm-roberta": FROM_PADDING,
    "mpnet": FROM_PADDING,
    "distilbert": {"hidden_dim": 32},
    "albert": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
}
"""Types of `transformers`, and what they are told beside their sizes."""


def write_encoder(directory: Path, kind: str = "bert", words: Sequence[str] = WORDS) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of one of KINDS, with 2 layers.

    words: `WORDS`, or as many others, of which it makes its tokens.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": N_TOKENS, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 64}
    transformers_logging.disable_progress_bar()
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes | KINDS[kind]))
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
