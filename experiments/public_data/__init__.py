"""Every shipped configuration on public data."""
