"""The PyTorch modules; only training imports them, everything that serves runs their ONNX exports."""
