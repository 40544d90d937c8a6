"""A hand-made sentence encoder: one dimension a word, so that every cosine can be said by hand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WORDS = ("[UNK]", "red", "blue", "nike", "shoes", "shirt", "size", "10")


def write_encoder(directory: Path) -> None:
    """Write `encoder.onnx` and `tokenizer.json`."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["states"]),
            helper.make_node("ReduceMean", ["states", "axis"], ["mean"], keepdims=0),
            helper.make_node("LpNormalization", ["mean"], ["vector"], axis=1, p=2),
        ],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", len(WORDS)])],
        [
            numpy_helper.from_array(np.eye(len(WORDS), dtype=np.float32), "table"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        str(directory / "encoder.onnx"),
    )
