"""Quantize an ONNX file as the tool `optimum` does by default for AVX2: run by run.py in an environment of its own.

python optimum_quantize.py MODEL.onnx CONFIG.json OUTPUT.onnx
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Load from a local directory, as no hub is needed, and write the dynamically quantized model."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    model, config, output = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        shutil.copyfile(model, Path(directory) / "model.onnx")
        shutil.copyfile(config, Path(directory) / "config.json")
        quantizer = ORTQuantizer.from_pretrained(directory, file_name="model.onnx")
        settings = AutoQuantizationConfig.avx2(is_static=False)
        quantizer.quantize(save_dir=Path(directory) / "out", quantization_config=settings)
        shutil.move(Path(directory) / "out" / "model_quantized.onnx", output)


if __name__ == "__main__":
    main()
