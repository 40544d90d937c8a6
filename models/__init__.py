"""What a model is: configuration, text, features, decoding and metrics; numpy, no training framework."""
