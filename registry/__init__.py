"""Bundles, MLflow, gates and promotion: how a trained model gets its role."""
