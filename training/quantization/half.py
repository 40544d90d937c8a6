"""From `model.onnx` to `model.fp16.onnx`: weights and arithmetic in 16 bits for GPUs, inputs and outputs unchanged."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_fp16(float32_path: Path, fp16_path: Path) -> None:
    """Write the FP16 variant; a CPU runs it too, slowly, by the casts that ONNX Runtime puts around each operator."""
    with warnings.catch_warnings():
        # A weight below the smallest half becomes that half.
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        model = convert_float_to_float16(onnx.load(str(float32_path)), keep_io_types=True)
    onnx.save_model(model, str(fp16_path))
