"""From `model.onnx` to its smaller variants: recipes, ranges, the choice by proof, and FP16."""
