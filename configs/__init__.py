"""Configurations to start from, found by bare name."""
