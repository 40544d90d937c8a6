"""ONNX Runtime's own operators, beside those of ONNX."""

from __future__ import annotations

import onnx
from onnx import helper

CONTRIB = "com.microsoft"


def import_contrib(model: onnx.ModelProto) -> None:
    """Let a graph say that it has such operators: ONNX Runtime runs it without, `onnx` itself reads no sizes of it."""
    if CONTRIB not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
