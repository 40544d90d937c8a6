"""Batches of texts with their padding and without."""
