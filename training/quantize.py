"""From `model.onnx` to `model.int8.onnx`: weights as 8-bit integers, activations quantized as they come."""

from __future__ import annotations

import logging
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic


def quantize(float32_path: Path, int8_path: Path) -> None:
    """Write the dynamic INT8 variant of a network: every product with constant weights, and the embeddings.

    Weights have one scale a column; `reduce_range` (7 bits) keeps AVX2's 16-bit sums of products from overflowing.
    """
    logging.getLogger().addFilter(_is_no_advice)
    try:
        quantize_dynamic(float32_path, int8_path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()
